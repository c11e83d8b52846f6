# What both generations of the stand-in agent share: configuration, log, tracking files, hooks, polls. Each trait that is told with a file and a line is the real
# agent's (v1 1.8.1, below lib/instance_agent where no other folder is named); the others were measured on it. A stand-in is never kinder than the real one.
#
# Faults and speeds are files in $STAGE/knobs, read when they matter, so that a case can change them under a running agent:
#   poll_seconds      a long poll (default 1)              boot_seconds      until the poller has its region and certificates (default 0.3)
#   pid_file_delay    until the PID file is there (1)      respawn_seconds   until a dead poller is replaced (5)
#   child_delay       until the poller is started (0)      crash             `booting TEXT` or `ready TEXT`: the poller logs TEXT as an error and ends
#   master_dies_after seconds after its start              ballast           MiB that a poller takes when it is told to grow
#   start_seconds     `start` takes so long (0)            error_pause       seconds after a refused poll, instead of the real, growing ones
#   poll              what polls give instead of 200: `missing`, `refused`, `tls` or `throttled`
#   first_poll        what the first poll of a new poller gives
#   report            `refused`: CodeDeploy does not take the report about a leftover
#   metadata          v2: `drops SECONDS` or `slow SECONDS`: how the metadata service answers a new worker
#   stop_refuses      `stop` finds a lifecycle event that is over a moment later
# A file in $STAGE/hooks is a lifecycle event, its content the hook's command; $STAGE/late-hook becomes one while a `stop` has looked for events and not yet sent
# its signal. What happens to hooks is written to $STAGE/log, and who called which command to $STAGE/commands.
package agent;

use strict;
use warnings;
use Fcntl qw(:flock F_SETFL O_NONBLOCK);
use File::Glob 'bsd_glob';
use POSIX qw(:sys_wait_h setsid setpgid _exit);

our $HOME = '/opt/codedeploy-agent';
our $STAGE = '/opt/stage';
our $TERMINATED = 0;
our $DRAINED = 0;
our (%CONFIG, %HOOKS, $BALLAST, $LOG, $DEPLOYMENTS_LOG);
my ($POLLS, $ERRORS) = (0, 0);
my $GROUP = '5f3c0d5e-0a4b-4a52-9d3c-7d0d6a1c9b11';
my $POLLER = 'InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller';
my $HOST = 'arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0';

sub nap { select undef, undef, undef, $_[0]; return }

sub now { return 0 + (split ' ', slurp('/proc/uptime'))[0] }

sub slurp {
    my ($file) = @_;
    open my $handle, '<', $file or return '';
    local $/;
    return scalar(<$handle>) // '';
}

sub append {
    my ($file, $text) = @_;
    open my $handle, '>>', $file or return;
    syswrite $handle, $text;
    return;
}

sub knob {
    my ($name, $default) = @_;
    my $value = slurp("$STAGE/knobs/$name");
    chomp $value;
    return length $value ? $value : $default;
}

# The agent's own log, in its form; the number is that of the process that writes. It stays open, so that whoever moves the file away takes it along.
sub agent_log {
    my ($level, $text) = @_;
    if (!$LOG) { open $LOG, '>>', "$CONFIG{log_dir}/$CONFIG{program_name}.log" or undef $LOG }
    syswrite $LOG, sprintf("%s %-5s [codedeploy-agent(%d)]: %s\n", POSIX::strftime('%Y-%m-%dT%H:%M:%S', gmtime), $level, $$, $text) if $LOG;
    return;
}

# The subset of YAML that people were seen to write into the agent's configuration; anything else is broken, and ends the command. Keys and values may be quoted,
# spaces may stand before the colon, the last of several equal keys counts, and of several documents the first (vendor/gems/process_manager…/config.rb:22).
sub read_config {
    %CONFIG = (
        program_name => 'codedeploy-agent', log_dir => '/var/log/aws/codedeploy-agent', pid_dir => "$HOME/state/.pid", root_dir => "$HOME/deployment-root",
        ongoing_deployment_tracking => 'ongoing-deployment', wait_between_runs => 30, log_aws_wire => 'false',
    );
    my ($text, $begun, %anchors) = (slurp('/etc/codedeploy-agent/conf/codedeployagent.yml'), 0);
    my @lines;
    for my $line (split /\n/, $text) {
        last if $begun && $line =~ /^(---|\.\.\.)(\s|$)/;
        next if $line =~ /^\s*(#.*|---\s*)?$/;
        $begun = 1;
        # Flow style: a mapping in braces, on one line.
        push @lines, $line =~ /^\s*\{(.*)\}\s*$/ ? split(/\s*,\s*/, $1) : $line;
    }
    for my $line (@lines) {
        if ($line !~ /^\s*:?(["']?):?(\w+)\1\s*:(?:\s+(.*?))?\s*$/) {
            print STDERR "error: (codedeployagent.yml): did not find expected key while parsing a block mapping\n";
            exit 1;
        }
        my ($key, $value) = ($2, $3 // '');
        my $anchor = $value =~ s/^&(\w+)\s+// ? $1 : undef;
        if ($value =~ /^(["'])(.*?)\1\s*(?:#.*)?$/) { $value = $2 }
        else { $value =~ s/(^|\s+)#.*// }
        $value = $anchors{$1} if $value =~ /^\*(\w+)$/;
        $anchors{$anchor} = $value if defined $anchor;
        $CONFIG{$key} = $value;
    }
    return;
}

sub pid_file { return "$CONFIG{pid_dir}/$CONFIG{program_name}.pid" }

sub tracking { return "$CONFIG{root_dir}/$CONFIG{ongoing_deployment_tracking}" }

# Every command says who called it.
sub called {
    my ($command) = @_;
    append("$STAGE/commands", "$command by $<\n");
    return;
}

# The process that the PID file names, if there is one.
sub running_pid {
    my ($pid) = slurp(pid_file()) =~ /^(\d+)/ or return;
    return -d "/proc/$pid" ? $pid : undef;
}

# A lifecycle event runs. Files older than a day are remains, and are deleted by whoever looks (plugins/codedeploy/deployment_command_tracker.rb:37-43, 69).
sub busy {
    my $found = 0;
    for my $file (bsd_glob(tracking() . '/*')) {
        if (time - (stat $file)[9] > 86_400) { unlink $file }
        else { $found = 1 }
    }
    return $found;
}

# `stop`, as both generations do it (runner/master.rb:34-68): it asks only the file, never whether that process is the agent; without a number in it the signal
# goes to the caller's own process group. It refuses while a lifecycle event runs, and else waits for the master's end.
sub stop_master {
    my ($named, $refuse) = @_;
    if (!-e pid_file()) {
        print "Nothing running that could be stopped\n";
        return;
    }
    my $pid = 0 + (slurp(pid_file()) =~ /^(\d+)/ ? $1 : 0);
    agent_log('INFO', "Checking first if any deployment lifecycle event is in progress master $pid");
    if (busy() || knob('stop_refuses', '')) {
        agent_log('INFO', "Master process ($pid) will not be shut down right now, as a deployment is already in progress");
        print STDERR "$refuse\n";
        exit 1;
    }
    if (rename "$STAGE/late-hook", "$STAGE/hooks/d-RACE") {
        for (1 .. 100) {
            last if slurp("$STAGE/log") =~ /d-RACE started/;
            nap(0.1);
        }
    }
    $named->();
    agent_log('INFO', "Stopping master $pid");
    kill 'TERM', $pid;
    for (1 .. 7200) {
        last unless kill 0, $pid;
        sleep 1;
    }
    return;
}

# Leaves the terminal, the caller's session and its standard streams, as a daemon does. Other descriptors that it inherited stay open.
sub detach {
    setsid();
    open STDIN, '<', '/dev/null';
    open STDOUT, '>', '/dev/null';
    open STDERR, '>', '/dev/null';
    return;
}

sub make_folder {
    my ($folder) = @_;
    my $path = '';
    for my $part (split m{/}, $folder) {
        $path .= "$part/";
        mkdir $path;
    }
    return;
}

sub make_folders {
    make_folder($_) for $CONFIG{root_dir}, $CONFIG{pid_dir}, $CONFIG{log_dir};
    return;
}

# What an agent that died left behind is reported as failed, and forgotten with its whole folder; if CodeDeploy does not take the report, it stays
# (plugins/codedeploy/command_poller.rb:71-91).
sub report_leftovers {
    return unless busy();
    my ($newest) = sort { (stat $b)[9] <=> (stat $a)[9] } bsd_glob(tracking() . '/*');
    (my $name = $newest) =~ s{.*/}{};
    agent_log('WARN', 'Deployment tracking file found: ' . tracking() . '. The agent likely restarted while running a customer-supplied script.');
    if (knob('report', '') eq 'refused') {
        agent_log('ERROR', "$POLLER: Exception thrown during restart recovery: The host command is not in progress");
        return;
    }
    append("$STAGE/log", "$name failed code 7 after an agent restart\n");
    unlink bsd_glob(tracking() . '/*');
    rmdir tracking();
    return;
}

sub crash_if_told {
    my ($moment) = @_;
    my ($when, $text) = split ' ', knob('crash', ''), 2;
    return unless defined $when && $when eq $moment;
    nap(0.5);
    agent_log('ERROR', $text);
    return 1;
}

# A poller's life: poll, pause, poll again, until it was told to end or its master is gone (vendor/gems/process_manager…/child.rb:22-48). Hooks run beside it.
sub poll {
    my ($master, $shows) = @_;
    until ($DRAINED) {
        # A poller without a master ends between two polls; its hooks go on without it.
        return if getppid() != $master;
        my $pause = poll_once($shows);
        live($shows, now() + $pause + $CONFIG{wait_between_runs});
    }
    return;
}

# Lets hooks and signals have their turn until a moment comes. A signal does not shorten the pause.
sub live {
    my ($shows, $end) = @_;
    while (now() < $end) {
        serve($shows);
        nap(0.1);
    }
    return;
}

# TERM waits for the hooks, in which time the title stays that of a ready poller; then the current long poll is finished
# (plugins/codedeploy/command_poller.rb:106-112, runner/child.rb:53-59).
sub serve {
    my ($shows) = @_;
    reap_hooks();
    $BALLAST = 'x' x (knob('ballast', 0) << 20) if !defined $BALLAST && knob('ballast', 0);
    return if !$TERMINATED || $DRAINED;
    agent_log('INFO', "$POLLER: Gracefully shutting down agent child threads now, will wait up to 7200 seconds");
    while (%HOOKS) {
        reap_hooks();
        nap(0.1);
    }
    agent_log('INFO', "$POLLER: All agent child threads have been shut down");
    $DRAINED = 1;
    $shows->();
    return;
}

my %ERRORS_OF = (
    # Nothing was sent, so the client has no line of its own (seen on the real agent).
    missing => [undef, 'Aws::Errors::MissingCredentialsError', 'unable to sign request without credentials set'],
    refused => [400, 'Aws::CodeDeployCommand::Errors::AccessDeniedException', "User: $HOST is not authorized to perform: codedeploy-commands-secure:PollHostCommand"],
    throttled => [400, 'Aws::CodeDeployCommand::Errors::ThrottlingException', 'Rate exceeded'],
    tls => [0, 'Seahorse::Client::NetworkingError', 'SSL_connect returned=1 errno=0 state=error: certificate verify failed (unable to get local issuer certificate)'],
);

# One poll, and what the log says of it: gives the pause that follows. A command ends it early. With log_aws_wire the client writes elsewhere
# (plugins/codedeploy/codedeploy_control.rb:17-25).
sub poll_once {
    my ($shows) = @_;
    my $began = now();
    my $failure = $ERRORS_OF{ $POLLS++ ? knob('poll', '') : knob('first_poll', knob('poll', '')) };
    my $end = $began + ($failure ? 0 : knob('poll_seconds', 1));
    while (now() < $end) {
        last if !$TERMINATED && start_hook();
        serve($shows);
        nap(0.1);
    }
    answered($began, $failure);
    if (!$failure) {
        $ERRORS = 0;
        return 0;
    }
    # Growing pauses, up to 90 s (agent/base.rb:47-63).
    $ERRORS++ if $ERRORS < 10;
    return knob('error_pause', int(1.2675**$ERRORS * 90 / 1.2675**10));
}

# v1: the client's own line at the end of each poll, with an empty line after it (seen on the real agent); of a failure then `Error polling…` with its backtrace,
# and the words of agent/base.rb:30-45. v2 has another.
our $ANSWERED = sub {
    my ($began, $failure) = @_;
    my ($code, $class, $message) = $failure ? @{$failure} : (200, '', '');
    my $line = sprintf '[Aws::CodeDeployCommand::Client %s %.6f 0 retries] poll_host_command(host_identifier:"%s") %s %s', $code // '', now() - $began, $HOST, $class, $message;
    if ($CONFIG{log_aws_wire} eq 'true') { append("$CONFIG{log_dir}/$CONFIG{program_name}.aws_wire.log", "I, [2026-01-01T00:00:00.000000 #$$]  INFO -- : $line\n") }
    elsif (defined $code) { agent_log('INFO', "$line\n") }
    return unless $failure;
    agent_log('ERROR', "$POLLER: Error polling for host commands: $class - $message - " . join "\n", map { "/usr/share/gems/gems/aws-sdk-core/lib/plugins/handler.rb:$_:in `call'" } 1 .. 50);
    if ($class =~ /NetworkingError/) {
        agent_log('ERROR', "$POLLER: Network error: #<$class: $message>");
        agent_log('ERROR', "$POLLER: Failed to execute the command. Your certificates might have been deleted") if $message =~ /certificate verify failed/;
    }
    elsif ($class =~ /MissingCredentials/) { agent_log('ERROR', "$POLLER: Missing credentials - please check if this instance was started with an IAM instance profile") }
    else { agent_log('ERROR', "$POLLER: Cannot reach InstanceService: $class - $message") }
    return;
};

sub answered { $ANSWERED->(@_); return }

# A command that a poll brought: the tracking file first, then the hook, from the folder of its deployment, in a process group of its own but in the agent's
# control group, both outputs as pipes to the poller (plugins/codedeploy/hook_executor.rb:106-110, 170, 174, 235). Gives whether there was one.
sub start_hook {
    my ($file) = glob "$STAGE/hooks/*" or return 0;
    (my $name = $file) =~ s{.*/}{};
    my $folder = "$CONFIG{root_dir}/$GROUP/$name";
    my $script = "$folder/deployment-archive/scripts/hook.sh";
    make_folder($_) for tracking(), "$folder/deployment-archive/scripts", "$folder/logs";
    # Each event of a deployment has its own.
    unlink $script;
    append($script, "#!/bin/bash\n" . slurp($file) . "\n");
    chmod 0755, $script;
    unlink $file;
    append(tracking() . "/$name", 'a-host-command-identifier');
    pipe my $out, my $out_end;
    pipe my $err, my $err_end;
    pipe my $in_end, my $in;
    my $pid = fork;
    if ($pid == 0) {
        setpgid(0, 0);
        $SIG{TERM} = 'DEFAULT';
        POSIX::dup2(fileno $in_end, 0);
        POSIX::dup2(fileno $out_end, 1);
        POSIX::dup2(fileno $err_end, 2);
        %ENV = (%ENV, DEPLOYMENT_ID => $name, LIFECYCLE_EVENT => 'ValidateService', APPLICATION_NAME => 'shop', DEPLOYMENT_GROUP_NAME => 'prod', DEPLOYMENT_GROUP_ID => $GROUP);
        { exec {$script} $script };
        _exit(127);
    }
    fcntl $_, F_SETFL, O_NONBLOCK for $out, $err;
    $HOOKS{$name} = { pid => $pid, pipes => [$out, $err], folder => $folder };
    say_of_hook($HOOKS{$name}, "LifecycleEvent - ValidateService\n");
    append("$STAGE/log", "$name started\n");
    return 1;
}

# The event is over when its process is, and nobody holds its outputs any more (plugins/codedeploy/hook_executor.rb:174-193).
sub reap_hooks {
    for my $name (keys %HOOKS) {
        my $hook = $HOOKS{$name};
        $hook->{pipes} = [grep { still_open($hook, $_) } @{ $hook->{pipes} }];
        $hook->{ended} = $? if !defined $hook->{ended} && waitpid($hook->{pid}, WNOHANG) == $hook->{pid};
        next if !defined $hook->{ended} || @{ $hook->{pipes} };
        my $code = $hook->{ended} & 127 ? 128 + ($hook->{ended} & 127) : $hook->{ended} >> 8;
        delete $HOOKS{$name};
        if ($code) {
            # As the real one says it: no error of a poll.
            agent_log('ERROR', "$POLLER: Error during perform: ScriptError - Script at specified location: scripts/hook.sh failed with exit code $code - hook_executor.rb:207:in `block'");
        }
        append("$STAGE/log", $code ? "$name failed code 4 with exit code $code\n" : "$name succeeded\n");
        unlink tracking() . "/$name";
    }
    return;
}

sub still_open {
    my ($hook, $pipe) = @_;
    my $count = sysread $pipe, my $text, 65536;
    return !defined $count unless $count;
    say_of_hook($hook, $text);
    return 1;
}

# What is said of a hook, and by it, goes to two logs, of which the second stays open from the first hook on (log.rb:5-25).
sub say_of_hook {
    my ($hook, $text) = @_;
    append("$hook->{folder}/logs/scripts.log", $text);
    if (!$DEPLOYMENTS_LOG) {
        make_folder("$CONFIG{root_dir}/deployment-logs");
        open $DEPLOYMENTS_LOG, '>>', "$CONFIG{root_dir}/deployment-logs/$CONFIG{program_name}-deployments.log";
    }
    syswrite $DEPLOYMENTS_LOG, $text;
    return;
}

1;
