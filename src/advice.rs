//! What a person should do, about every outcome and every problem. No other file gives advice.

use serde_json::json;

use crate::clock::Timestamp;
use crate::document::Verdict;
use crate::ids::{GroupName, Name};
use crate::outcome::Cause;
use crate::platform::Platform;
use crate::problem::{Call, Code, Problem};
use crate::report::Row;
use crate::trigger::Home;

/// Commands of a message that repeat a group's restart, one for each deployment.
pub const MAX_COMMANDS: usize = 10;

impl Row<'_> {
    /// What to do about it, in the commands of the platform whose document it was sent.
    pub fn remedy(&self) -> &'static str {
        on_outcome(self.outcome.cause, self.platform)
    }
}

fn on_outcome(cause: Cause, platform: Option<Platform>) -> &'static str {
    let windows = platform == Some(Platform::Windows);
    match cause {
        Cause::Reported(verdict) => on_verdict(verdict, windows),
        Cause::NoProof => {
            "check that the document is this version's restart document for its platform, and the command's output"
        }
        Cause::Skipped => "nothing",
        Cause::DeploymentRuns => {
            "nothing, if this function also hears of that deployment's end: it brings the restart; \
             else repeat by hand"
        }
        Cause::Unreachable | Cause::Undelivered => {
            "check the SSM Agent, the instance profile (AmazonSSMManagedInstanceCore) and the network, \
             then repeat by hand; or terminate the instance"
        }
        Cause::Unmatched => {
            "register it in Systems Manager, in the deployment group's region, by an activation of its own whose \
             DefaultInstanceName is exactly its name in CodeDeploy; deregister others of that name; then repeat by hand"
        }
        Cause::CannotRun if windows => {
            "let the SSM Agent there run scripts: free disk space and memory, no policy and no security product that \
             forbids PowerShell scripts; C:\\ProgramData\\Amazon\\SSM\\Logs\\amazon-ssm-agent.log says what it lacks; then repeat by hand"
        }
        Cause::CannotRun => {
            "let the SSM Agent there run scripts: free disk space and memory, no noexec on /var; \
             /var/log/amazon/ssm/amazon-ssm-agent.log says what it lacks; then repeat by hand"
        }
        Cause::Denied => {
            "allow this function's role ssm:SendCommand on the instance (by its tag or the policy), then \
             repeat by hand"
        }
        Cause::TimedOut if windows => {
            "Get-Service codedeployagent on the instance: it may be down; then repeat by hand"
        }
        Cause::TimedOut => {
            "systemctl status codedeploy-agent on the instance: it may be down; then repeat by hand"
        }
        Cause::Cancelled => "find out who cancelled it, then repeat by hand",
        Cause::UnknownLifecycle => "wait until it is InService, then repeat by hand",
        Cause::UnknownPlatform => "restart the agent there yourself",
        Cause::NoDocument => {
            "update the stack, or set DOCUMENT_NAME and WINDOWS_DOCUMENT_NAME to documents that are in the \
             instance's region; then repeat by hand"
        }
        Cause::TooManyErrors => "mend those that failed, then repeat by hand",
        Cause::NoTime => "repeat by hand",
        Cause::FailedCall => "do what the problem says, then repeat by hand",
        Cause::NoResult => {
            "see the command's result in Systems Manager, Run Command; then repeat by hand"
        }
    }
}

fn on_verdict(verdict: Verdict, windows: bool) -> &'static str {
    match verdict {
        Verdict::Restarted
        | Verdict::Started
        | Verdict::AlreadyRestarted
        | Verdict::BelowThreshold => "nothing",
        Verdict::NotInstalled => {
            "install the agent, or take the instance out of the deployment group"
        }
        Verdict::NotRoot if windows => "let the SSM Agent run as LocalSystem, as it is installed",
        Verdict::NotRoot => "let the SSM Agent run commands as root",
        Verdict::PreflightFailed if windows => {
            "mend what the host says (program, configuration, service, disk, memory), then repeat by hand; what runs there \
             was left alone"
        }
        Verdict::PreflightFailed => {
            "mend what the host says (program, configuration, unit, disk, memory), then repeat by hand; what runs there was \
             left alone"
        }
        Verdict::Busy | Verdict::UpdateRunning => "repeat by hand when what runs there has ended",
        Verdict::RestartRunning if windows => "repeat by hand when it has ended",
        Verdict::RestartRunning => {
            "repeat by hand when it has ended; systemctl list-jobs shows what a queued start waits for"
        }
        Verdict::Draining => {
            "repeat by hand when it has ended: that proves the new agent, or starts one if somebody had stopped it"
        }
        Verdict::ServiceManagerFailed | Verdict::AgentDown if windows => {
            "start the agent now, or the next deployment fails there: Start-Service codedeployagent; the newest log in \
             C:\\ProgramData\\Amazon\\CodeDeploy\\log shows why it went down"
        }
        Verdict::ServiceManagerFailed | Verdict::AgentDown => {
            "start the agent now, or the next deployment fails there: sudo systemctl start \
             codedeploy-agent; journalctl -u codedeploy-agent shows why it went down"
        }
        Verdict::OldAgentSurvived if windows => {
            "when no deployment runs: Stop-Service codedeployagent, end what is left of it (Stop-Process), \
             Start-Service codedeployagent"
        }
        Verdict::OldAgentSurvived => {
            "pgrep -af codedeploy-agent shows the old agent: when no deployment runs, stop it and start the \
             service once"
        }
        Verdict::AgentUnhealthy => {
            "mend what the host says (credentials, role, endpoint, network, TLS), then repeat by hand: the agent runs, but \
             CodeDeploy does not hear it, or its poller does not stay"
        }
    }
}

impl Problem {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match (&self.code, &self.call) {
            (Code::Aws(aws), Some(call)) => on_call(&self.code, aws, call),
            (code, _) => on_code(code),
        }
    }
}

/// What to do about a call that AWS refused.
fn on_call(code: &Code, aws: &str, call: &Call) -> String {
    let Call {
        operation,
        resource,
    } = call;
    match aws {
        _ if code.is_denied() && *operation == "ssm:SendCommand" => format!(
            "allow {operation} in the function's role, on the document {resource} and on the instances \
             (if only with a tag: these lack it)"
        ),
        _ if code.is_denied() => {
            format!("allow {operation} in the function's role, for {resource}")
        }
        "InvalidDocument" | "InvalidDocumentVersion" => {
            format!("create the restart document in that region under the name {resource}")
        }
        "UnsupportedPlatformType" => format!(
            "let DOCUMENT_NAME name the restart document for Linux, and WINDOWS_DOCUMENT_NAME the one for Windows: \
             {resource} is not what its setting says"
        ),
        "UnrecognizedClientException" | "InvalidClientTokenId" | "ExpiredTokenException" => {
            "check the function's credentials and that the region is enabled".to_owned()
        }
        _ if code.is_throttling() => {
            format!("the account's rate limit of {operation} is used up: repeat by hand later")
        }
        gone if gone.ends_with("DoesNotExistException") || gone.ends_with("NotFoundException") => {
            format!("{resource} is not there: check the name, unless it was deleted on purpose")
        }
        _ => on_code(code),
    }
}

fn on_code(code: &Code) -> String {
    match code {
        Code::Aws(_)
        | Code::Timeout
        | Code::NoConnection
        | Code::UnreadableAnswer
        | Code::InvalidRequest
        | Code::TooManyPages => {
            "repeat by hand; if it fails again, see the function's log".to_owned()
        }
        Code::OtherAccount(account) => {
            format!(
                "install this function in account {account} too, with Trigger=deployments, and then name that account \
                 here, in CoveredAccounts (COVERED_ACCOUNTS)"
            )
        }
        Code::ActionsNotListed | Code::IncompleteAction => {
            "repeat by hand with the application and the deployment group".to_owned()
        }
        Code::ForeignDeployment => {
            "repeat by hand with the deployment's own application and deployment group".to_owned()
        }
        Code::NoDeployment => "give a deploymentId".to_owned(),
        Code::NoTargets => {
            "check the deployment's instances in CodeDeploy; if there are none, nothing is to be done"
                .to_owned()
        }
        Code::NobodyTagged => {
            "tag those whose agents are to be restarted, or clear InstanceTagValue (INSTANCE_TAG) to restart all; then repeat \
             by hand"
                .to_owned()
        }
        Code::NoTime => "repeat by hand".to_owned(),
        Code::AutoScalingGroupMissing => "correct the deployment group".to_owned(),
    }
}

/// The commands that repeat the restart of a group by hand, one for each of the first deployments: a request takes
/// one. Agents that are fresh by then are left alone; since when they are, a request said, or the deployments do.
pub fn repeat_commands(
    group: &GroupName,
    deployment_ids: &[Name],
    since: Option<Timestamp>,
    home: &Home,
) -> Vec<String> {
    let ids: Vec<Option<&Name>> = match deployment_ids {
        [] => vec![None],
        ids => ids.iter().map(Some).collect(),
    };
    ids.into_iter()
        .take(MAX_COMMANDS)
        .map(|id| {
            let mut request = json!({
                "application": group.application,
                "deploymentGroup": group.deployment_group,
                "region": group.region,
            });
            if let Some(since) = since {
                request["time"] = json!(since);
            }
            if let Some(id) = id {
                request["deploymentId"] = json!(id);
            }
            format!(
                "aws lambda invoke --region {} --function-name {} --cli-read-timeout 900 \
                 --cli-binary-format raw-in-base64-out --payload '{request}' answer.json",
                home.region, home.function
            )
        })
        .collect()
}
