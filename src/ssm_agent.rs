//! What the SSM Agent, the shell or PowerShell says where a document's script could not be run, or was lost sight of. Known
//! narrowly: whatever a script prints, a hook's words included, is not taken for it.

/// What stands before the standard error of a step, and begins its output where it printed nothing else:
/// <https://github.com/aws/amazon-ssm-agent/blob/mainline/agent/framework/processor/executer/iohandler/iohandler.go>
const ERROR_PART: &str = "----------ERROR-------";
/// How the agent's own line begins after which no script was started, whatever reason follows. What Go's `os/exec` says
/// of one that was started begins otherwise. <https://github.com/aws/amazon-ssm-agent/blob/mainline/agent/plugins/runscript/runscript.go>,
/// <https://github.com/aws/amazon-ssm-agent/blob/mainline/agent/executers/executers.go>
const NOT_STARTED: [&str; 7] = [
    "failed to create orchestrationDir directory, ",
    "failed to create script file. ",
    // No memory or process left for the shell, or a policy that forbids it.
    "failed to run commands: fork/exec ",
    "failed to run commands: exec: \"",
    "failed to run commands: open /dev/null: ",
    "failed to run commands: open NUL: ",
    "failed to run commands: pipe",
];
/// The agent's worker died, could not be handed the script (a full disk), or the machine was booted anew. The script may
/// run on. <https://github.com/aws/amazon-ssm-agent/blob/mainline/agent/framework/processor/executer/outofproc/master.go>
const LOST: &str = "document process failed unexpectedly: ";
/// A full disk, as people have reported it; the agent's newer versions do not say it. It may be the output that found no
/// room.
const NO_SPACE: (&str, &str) = ("failed to run commands: ", ": no space left on device");
/// An installation that lacks what runs scripts:
/// <https://github.com/aws/amazon-ssm-agent/blob/mainline/agent/framework/runpluginutil/runpluginutil.go>
const NO_PLUGIN: (&str, &str) = ("Plugin with name ", " not found. Step name: ");

/// The text of a step's output, if it is all the SSM Agent's own and says so. `code` is the step's response code.
pub fn could_not_run(output: &str, code: i32) -> Option<&str> {
    let output = output.trim();
    let error = output.strip_prefix(ERROR_PART).map(str::trim);
    let text = error.unwrap_or(output);
    // The code of a script that ended before its worker was lost is that script's.
    let lost = code == 1 && text.starts_with(LOST);
    let not_started = NOT_STARTED.iter().any(|begin| text.starts_with(begin));
    let full = text.starts_with(NO_SPACE.0) && text.ends_with(NO_SPACE.1);
    let lacks = text.starts_with(NO_PLUGIN.0) && text.contains(NO_PLUGIN.1);
    let one_line = !text.contains('\n');
    let own = one_line && (lost || not_started || full || lacks);
    let nothing_printed = error.is_some_and(|error| shell(error, code) || powershell(error));
    (own || nothing_printed || powershell_start(output)).then_some(text)
}

/// A shell that cannot run the file that it is given (`noexec` on `/var`, a file that was cleared away): its exit codes
/// for that, and its own line about the file, in its own name and not in the script's
/// (<https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html#tag_19_08_02>).
fn shell(error: &str, code: i32) -> bool {
    let about_the_file = |line: &str| {
        line.starts_with("sh: ")
            && line.contains("/document/orchestration/")
            && line.contains("/_script.sh: ")
    };
    matches!(code, 126 | 127) && error.lines().any(about_the_file)
}

/// PowerShell that a policy (a script at all, or its language) or an antivirus product does not let run the file: by the
/// error's id, which is never translated
/// (<https://learn.microsoft.com/powershell/module/microsoft.powershell.core/about/about_execution_policies>,
/// <https://learn.microsoft.com/powershell/module/microsoft.powershell.core/about/about_language_modes>).
fn powershell(error: &str) -> bool {
    const IDS: [&str; 3] = [
        "UnauthorizedAccess",
        "MethodInvocationNotSupportedInConstrainedLanguage",
        "ScriptContainedMaliciousContent",
    ];
    // Its lines end where the console did, in mid-word too.
    let unbroken: String = error.split_whitespace().collect();
    let told = unbroken.split_once("+FullyQualifiedErrorId:");
    told.is_some_and(|(message, rest)| {
        let id = rest.split("failedtoruncommands:").next();
        message.contains(r"\_script.ps1") && id.is_some_and(|id| IDS.contains(&id))
    })
}

/// PowerShell that did not come up (for want of memory), or did not find the file: by exit codes that it has for its start
/// alone (`ConsoleHost.cs` of <https://github.com/PowerShell/PowerShell>), and Windows' for a process that did not begin.
/// Go writes them either way.
fn powershell_start(output: &str) -> bool {
    const CODES: [&str; 6] = [
        "0xffff0000",
        "4294901760",
        "0xfffd0000",
        "4294770688",
        "0xc0000142",
        "3221225794",
    ];
    let end = output.rsplit_once("failed to run commands: exit status ");
    end.is_some_and(|(_, code)| CODES.contains(&code))
}
