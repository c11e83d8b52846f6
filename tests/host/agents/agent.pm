# What both generations of the stand-in agent share: configuration, tracking files, hooks, the long poll. Each does what the real agent was measured to do.
#
# Faults and speeds are files in $STAGE/knobs, read when they matter, so that a case can change them under a running agent:
#   poll_seconds      a long poll (default 1)              boot_seconds      until the poller is ready (default 0.3)
#   pid_file_delay    until the PID file is there (1)      respawn_seconds   until a dead poller is replaced (5)
#   child_delay       until the poller is started (0)      crash             `booting TEXT` or `ready TEXT`: the poller logs TEXT as an error and ends
#   master_dies_after seconds after its start              ballast           MiB that a poller takes when it is told to grow
# What happens to hooks is written to $STAGE/log; a file in $STAGE/hooks is a lifecycle event, its content the hook's command.
package agent;

use strict;
use warnings;
use Fcntl ':flock';
use POSIX qw(:sys_wait_h setsid setpgid _exit);

our $HOME = '/opt/codedeploy-agent';
our $STAGE = '/opt/stage';
our $TERMINATED = 0;
our (%CONFIG, %HOOKS, $BALLAST);

sub nap { select undef, undef, undef, $_[0] }

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
}

sub knob {
    my ($name, $default) = @_;
    my $value = slurp("$STAGE/knobs/$name");
    chomp $value;
    return length $value ? $value : $default;
}

# The agent's own log, in its form.
sub agent_log {
    my ($level, $text) = @_;
    append("$CONFIG{log_dir}/$CONFIG{program_name}.log", sprintf("%s %-5s [codedeploy-agent(%d)]: %s\n", POSIX::strftime('%Y-%m-%dT%H:%M:%S', gmtime), $level, $$, $text));
}

# The subset of YAML that the agent's configuration uses; anything else is broken, and ends the command.
sub read_config {
    %CONFIG = (
        program_name => 'codedeploy-agent', log_dir => '/var/log/aws/codedeploy-agent', pid_dir => "$HOME/state/.pid", root_dir => "$HOME/deployment-root",
        ongoing_deployment_tracking => 'ongoing-deployment',
    );
    for my $line (split /\n/, slurp('/etc/codedeploy-agent/conf/codedeployagent.yml')) {
        next if $line =~ /^\s*(#.*|---.*)?$/;
        if ($line !~ /^:?(\w+):(?:\s+(.*?))?\s*$/) {
            print STDERR "error: (codedeployagent.yml): did not find expected key while parsing a block mapping\n";
            exit 1;
        }
        my ($key, $value) = ($1, $2 // '');
        $value =~ s/\s+#.*//;
        $value =~ s/^(["'])(.*)\1$/$2/;
        $CONFIG{$key} = $value;
    }
    return;
}

sub pid_file { return "$CONFIG{pid_dir}/$CONFIG{program_name}.pid" }

sub tracking { return "$CONFIG{root_dir}/$CONFIG{ongoing_deployment_tracking}" }

# The process that the PID file names, if there is one.
sub running_pid {
    my ($pid) = slurp(pid_file()) =~ /^(\d+)/ or return;
    return kill(0, $pid) ? $pid : undef;
}

# A lifecycle event runs. Files older than a day are remains, and are deleted by whoever looks.
sub busy {
    my $found = 0;
    for my $file (glob tracking() . '/*') {
        if (time - (stat $file)[9] > 86_400) { unlink $file }
        else { $found = 1 }
    }
    return $found;
}

# Leaves the terminal, the caller's session and its standard streams, as a daemon does. Other descriptors that it inherited stay open.
sub detach {
    setsid();
    open STDIN, '<', '/dev/null';
    open STDOUT, '>', '/dev/null';
    open STDERR, '>', '/dev/null';
    return;
}

sub make_folders {
    for my $folder (tracking(), $CONFIG{pid_dir}, $CONFIG{log_dir}) {
        my $path = '';
        for my $part (split m{/}, $folder) {
            $path .= "$part/";
            mkdir $path;
        }
    }
    return;
}

# What an agent that died left behind is reported as failed, and forgotten.
sub report_leftovers {
    for my $file (glob tracking() . '/*') {
        (my $name = $file) =~ s{.*/}{};
        append("$STAGE/log", "$name failed code 7 after an agent restart\n");
        unlink $file;
    }
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

# Runs lifecycle events and long polls until the agent is told to end and both are over, or its master is gone.
sub poll {
    my ($master) = @_;
    while (getppid() == $master) {
        my $end = now() + knob('poll_seconds', 1);
        while (now() < $end || %HOOKS) {
            start_hooks() unless $TERMINATED;
            reap_hooks();
            $BALLAST = 'x' x (knob('ballast', 0) << 20) if !defined $BALLAST && knob('ballast', 0);
            last if $TERMINATED && !%HOOKS && now() >= $end;
            last if getppid() != $master && !%HOOKS;
            last if !$TERMINATED && now() >= $end;
            nap(0.05);
        }
        last if $TERMINATED;
    }
    return;
}

# A hook has a process group of its own, but stays in the agent's control group.
sub start_hooks {
    for my $file (glob "$STAGE/hooks/*") {
        (my $name = $file) =~ s{.*/}{};
        my $command = slurp($file);
        unlink $file;
        append(tracking() . "/$name", 'a-host-command-identifier');
        my $pid = fork;
        if ($pid == 0) {
            setpgid(0, 0);
            $SIG{TERM} = 'DEFAULT';
            { exec '/bin/bash', '-c', $command };
            _exit(127);
        }
        $HOOKS{$pid} = $name;
        append("$STAGE/log", "$name started\n");
    }
    return;
}

sub reap_hooks {
    for my $pid (keys %HOOKS) {
        next if waitpid($pid, WNOHANG) != $pid;
        my $code = $? & 127 ? 128 + ($? & 127) : $? >> 8;
        my $name = delete $HOOKS{$pid};
        append("$STAGE/log", $code ? "$name failed code 4 with exit code $code\n" : "$name succeeded\n");
        unlink tracking() . "/$name";
    }
    return;
}

1;
