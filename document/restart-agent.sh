#!/bin/sh
# Restarts the CodeDeploy agent of this host when that hurts nothing, proves that a new, working agent is there, and says so in one line of JSON.
#
# POSIX sh (dash, bash, busybox ash), run as root by Systems Manager Run Command. The contract (parameters, codes, the line) is in README.md beside this file.
# The steps are in main(), at the end; each function above it is named by what it does or proves.
#
# Three things decide how it goes about it.
# The agent's own stop refuses while a lifecycle event runs, but systemd kills the unit's whole control group after that refusal: the hook, and every application
# that a hook ever started. So the kill mode is changed before anything is asked of systemd.
# No exit status proves anything: a restart can be a silent no-op, and `is-active` is also said of an agent that crash-loops or that CodeDeploy does not hear.
# So the proof is looked for in /proc and in the agent's log.
# And the hosts that need this are those whose memory or tasks have run out. So the shell looks for itself, without starting anything: a function gives its answer
# in variables (in capitals), not through a substitution. Where a process could not be started, the shell ends, and the trap at the end says so in a true line.

set -u
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 022
cd /

# The line goes to what was standard output. Nothing else may: Systems Manager keeps 2,500 bytes, and error text would push the line out.
exec 3>&1 >/dev/null 2>&1 </dev/null

# What the function asks for. Without the first two (by hand) no agent counts as fresh.
TRIGGERED_AT=${TRIGGERED_AT:-}
SENT_AT=${SENT_AT:-}
BUSY_WAIT_SECONDS=${BUSY_WAIT_SECONDS:-120}
MIN_MEMORY_MIB=${MIN_MEMORY_MIB:-0}

# Times in seconds. The tests can lower them; nothing else does.
STATUS_LIMIT=${TEST_STATUS_LIMIT:-30}    # the agent's own `status`
RESTART_LIMIT=${TEST_RESTART_LIMIT:-150} # a restart: it ends with the current long poll, up to 80 s
READY_LIMIT=${TEST_READY_LIMIT:-60}      # until a new poller says that it is ready
STABLE=${TEST_STABLE:-12}                # the same processes for this long; a crash loop turns every 5 s
PROOF_LIMIT=${TEST_PROOF_LIMIT:-75}      # until a ready poller has polled: a long poll lasts 45 s, some 60
BLIND_LIMIT=${TEST_BLIND_LIMIT:-45}      # the same processes for this long, where the log tells nothing of polls
WORKER_LIMIT=${TEST_WORKER_LIMIT:-65}    # until a master of v2 shows a worker: it starts one at least every 60 s
ASK_LIMIT=20                             # any question to systemd
RECENT=300                               # how old the last good poll may be of an agent that was left alone
DEADLINE=$((BUSY_WAIT_SECONDS + 390))    # of this script; Systems Manager would kill it 60 s later, without a line
QUIET_LOOKS=3                            # the tracking directory is empty between two lifecycle events, so look again
LOOK_EVERY=2
STALE=86400                              # the agent itself ignores tracking files of this age
DRAIN_LIMIT=7200                         # an agent that is asked to end waits this long for its lifecycle event

AGENT=/opt/codedeploy-agent
CLI=$AGENT/bin/codedeploy-agent
OWN_UNIT=codedeploy-agent.service
INIT_SCRIPT=/etc/init.d/codedeploy-agent
LOCK=/run/codedeploy-agent-restart.lock
# The transient unit that restarts an agent which runs outside its own.
JOB_UNIT=codedeploy-agent-restart.service
# Runtime only: it is gone after a reboot, whatever happens to this script. Its name sorts after an administrator's `override.conf`.
DROP_IN_NAME=zz-agent-restart.conf
NEWLINE='
'
NO_TASK='could not start a process (no task or memory is free)'

# ---- time and bounds ----------------------------------------------------------------------------------------------------------------------------------

# Sets NOW, seconds since boot. The wall clock may be wrong, and may be set while this runs.
tick() { read -r up _ < /proc/uptime && NOW=${up%%.*}; }

# Sets PARENT, GROUP, SESSION and STARTED (in ticks of the kernel's, 100 a second on every architecture that Systems Manager runs on) of a living process; fails
# when it is gone or a zombie.
read_process() {
  STARTED=''
  read -r stat < "/proc/$1/stat" || return
  # The name stands in parentheses, and may hold some.
  stat=${stat##*) }
  # shellcheck disable=SC2086 # a word for each field
  set -- $stat
  case $#:$1 in [0-9]:* | 1[0-9]:* | *:[ZX]) return 1 ;; esac
  PARENT=$2 GROUP=$3 SESSION=$4 STARTED=${20}
}

read_process self
BEGAN_TICKS=$STARTED
tick
BEGAN=$NOW

# Whether the process `pid:start` lives: a later one with the same number is another.
is_alive() { read_process "${1%%:*}" && [ "$STARTED" = "${1#*:}" ]; }

# Sets AGE, how old a process is that started at these ticks, in seconds. By the kernel's count for both processes: /proc/uptime is virtual in some containers.
age_since() { tick && AGE=$((NOW - BEGAN - ($1 - BEGAN_TICKS) / 100)); }

# Sets LEFT, the seconds that are left of this script, or $1 if that is less. Never less than 5, though: a question that nobody has time to answer would be
# taken for a no.
at_most() {
  tick
  LEFT=$((BEGAN + DEADLINE - NOW))
  [ "$LEFT" -lt 5 ] && LEFT=5
  [ "$LEFT" -gt "$1" ] && LEFT=$1
  return 0
}

# Sets FILE_AGE, how long ago a file was written, in seconds. By the wall clock, as the file's own time is. What cannot be told counts as new.
file_age() {
  FILE_AGE=$(date +%s):$(date -r "$1" +%s)
  case $FILE_AGE in :* | *: | *[!0-9:]*) FILE_AGE=0 ;; *) FILE_AGE=$((${FILE_AGE%:*} - ${FILE_AGE#*:})) ;; esac
}

# Runs a command for at most $1 seconds; 124 when it had to be ended. Descriptors 3 and 9 are closed: an agent that inherits the first would make Systems
# Manager wait for its end, and one that inherits the second would keep the lock for ever.
bounded() {
  at_most "$1"
  shift
  if [ -n "$HAVE_TIMEOUT" ]; then
    timeout "$LEFT" "$@" 3>&- 9>&-
    ended=$?
    # Some busybox say that the command was ended by a signal, which is the same.
    [ "$ended" -eq 143 ] && ended=124
    return "$ended"
  fi
  "$@" 3>&- 9>&- &
  child=$!
  child_end=$((NOW + LEFT))
  while kill -0 "$child"; do
    tick
    if [ "$NOW" -ge "$child_end" ]; then
      kill "$child"
      return 124
    fi
    sleep 1
  done
  wait "$child"
}

# ---- the one line --------------------------------------------------------------------------------------------------------------------------------------

# Sets TEXT to $2 as the inside of a JSON string, at most $1 bytes: ASCII without control characters, quotes or backslashes, so that nothing has to be escaped.
json_text() {
  TEXT=''
  rest=$2
  while [ -n "$rest" ] && [ ${#TEXT} -lt "$1" ]; do
    char=${rest%"${rest#?}"}
    rest=${rest#?}
    case $char in
      '"') char="'" ;;
      \\) char=/ ;;
      [!\ -~]) char=' ' ;;
    esac
    case $TEXT$char in ' ' | *'  ') ;; *) TEXT=$TEXT$char ;; esac
  done
  TEXT=${TEXT% }
}

MEMORY_BEFORE=0
VERSION='' PROGRAM=codedeploy-agent PID_FILE='' RUNNING_TRACKING='' UNIT=$OWN_UNIT FRAGMENT='' LOCKED=''
# How far it went: `untouched`, `asked` while a restart that was asked for goes on, then `touched`.
DONE=untouched

# Prints the line and ends. $1: exit code, $2: result, $3: detail. Nothing is started before the line is out: on a host without a free task it would not be.
finish() {
  trap - EXIT
  trap '' HUP INT TERM
  unset IFS
  ENDS_WITH=$1
  trap 'exit "$ENDS_WITH"' EXIT
  look_once
  measure_agent
  tick
  json_text 60 "$VERSION"
  version=$TEXT
  json_text 600 "$3"
  printf '{"agentRestart":1,"result":"%s","code":%d,"agentVersion":"%s","memoryBeforeKiB":%d,"memoryAfterKiB":%d,"seconds":%d,"detail":"%s"}\n' \
    "$2" "$1" "$version" "$MEMORY_BEFORE" "$MEMORY" "$((NOW - BEGAN))" "$TEXT" >&3
  # An agent that is down may be in systemd's hands, which starts it again and again: each failure would kill the applications without the drop-in. The same if
  # the old agent survived a restart: the new one that finds it running may end only after this, and its failure would kill a hook. The next run clears it.
  # A unit made from the init script is not started again, and kills nobody.
  case $1:$DONE:$FRAGMENT in
    *:asked:*) ;;
    *generator*) clear_drop_in ;;
    30:* | 32:* | 20:touched:* | 31:touched:*) ;;
    *) clear_drop_in ;;
  esac
  release_lock
  exit "$1"
}

# Ends where it could not see enough to be sure, or where a new agent would not start. $1: why.
leave_alone() {
  [ "$DONE" = untouched ] && finish 12 preflight-failed "$1; the agent was left alone"
  finish 33 agent-unhealthy "$1: nothing is proven about the new agent"
}

# Whatever ends this script, there is a line that is true.
# shellcheck disable=SC2317 # a trap calls it
interrupted() {
  why="the script was ended by a signal, or $NO_TASK"
  [ "$DONE" = asked ] && finish 34 draining "$why; the restart that it asked for may go on by itself"
  leave_alone "$why"
}
trap interrupted EXIT HUP INT TERM

# ---- the lock: one run at a time on this host ------------------------------------------------------------------------------------------------------------

# Until when this run waits for other things on the host.
PATIENCE_END=$((BEGAN + BUSY_WAIT_SECONDS))

is_patient() { tick && [ "$NOW" -lt "$PATIENCE_END" ]; }

# With flock the kernel frees the lock of a run that was killed. Without it a symbolic link holds the owner's identity, so that a dead owner shows.
take_lock() {
  true >> "$LOCK.file" || leave_alone "cannot write to ${LOCK%/*}"
  if command -v flock; then
    exec 9>> "$LOCK.file"
    until flock -n 9; do wait_for_lock; done
  else
    until ln -s "$$:$BEGAN_TICKS" "$LOCK.owner"; do
      owner=$(readlink "$LOCK.owner")
      if [ -n "$owner" ] && ! is_alive "$owner"; then
        # Renaming is atomic: of several runs that find the dead owner, one gets it. It looks again what it got, since another may have been faster altogether.
        mv "$LOCK.owner" "$LOCK.dead.$$" && [ "$(readlink "$LOCK.dead.$$")" != "$owner" ] && mv "$LOCK.dead.$$" "$LOCK.owner"
        rm -f "$LOCK.dead.$$"
      else
        wait_for_lock
      fi
    done
  fi
  LOCKED=yes
}

wait_for_lock() {
  is_patient || finish 22 restart-running "another restart holds the lock after ${BUSY_WAIT_SECONDS} s"
  sleep 1
}

release_lock() { [ -L "$LOCK.owner" ] && [ "$(readlink "$LOCK.owner")" = "$$:$BEGAN_TICKS" ] && rm -f "$LOCK.owner"; }

# ---- the agent's configuration -----------------------------------------------------------------------------------------------------------------------------

trimmed() {
  TRIMMED=${1#"${1%%[![:space:]]*}"}
  TRIMMED=${TRIMMED%"${TRIMMED##*[![:space:]]}"}
}

# Reads what the agent reads: YAML's block form with one key a line, of which the last counts, and only the first document. Whatever else YAML knows (anchors,
# flow style, values over several lines) makes it UNCERTAIN where it concerns one of the agent's directories.
read_configuration() {
  PROGRAM=codedeploy-agent PID_DIR=$AGENT/state/.pid ROOT_DIR=$AGENT/deployment-root TRACKING_NAME=ongoing-deployment LOG_DIR=/var/log/aws/codedeploy-agent
  WIRE_LOG=false UNCERTAIN='' margin=none begun='' bare_keys=''
  CONFIG=/etc/codedeploy-agent/conf/codedeployagent.yml
  [ -f "$CONFIG" ] || CONFIG=$AGENT/conf/codedeployagent.yml
  if [ -f "$CONFIG" ]; then
    while IFS= read -r line || [ -n "$line" ]; do read_entry "$line" || break; done < "$CONFIG"
  fi
  name_files
}

# The files whose places follow from the configuration.
name_files() {
  PID_FILE=${PID_DIR%/}/$PROGRAM.pid
  TRACKING=${ROOT_DIR%/}/$TRACKING_NAME
  LOG=${LOG_DIR%/}/$PROGRAM.log
}

# One line of it; fails where the first document ends.
read_entry() {
  trimmed "$1"
  text=$TRIMMED
  case $1 in
    '---' | '---'[[:space:]]*)
      [ "$margin" = none ] || return 1
      trimmed "${text#---}"
      case $begun$TRIMMED in '' | '#'*) ;; *) UNCERTAIN=$text ;; esac
      begun=yes
      return 0
      ;;
    '...'*)
      [ "$margin" = none ] && UNCERTAIN=$text
      return 1
      ;;
    '%'*) [ "$margin" = none ] && return 0 ;;
  esac
  case $text in '' | '#'*) return 0 ;; esac
  indent=${1%%[![:space:]]*}
  [ "$margin" = none ] && margin=$indent key=''
  # A line that goes further in belongs to the key above it.
  if [ "$indent" != "$margin" ]; then
    concerns_us && UNCERTAIN=$text
    return 0
  fi
  split_entry || { UNCERTAIN=$text && return 0; }
  # What is not closed on its line goes on over the next ones.
  trimmed "$value"
  case $TRIMMED in
    \"*\"* | \'*\'* | '['*']'* | '{'*'}'*) ;;
    \"* | \'* | '['* | '{'*) UNCERTAIN=$text ;;
  esac
  concerns_us || return 0
  # Both spellings of a key are two keys to YAML, of which the agent takes the one without the colon (core_ext.rb, symbolize_keys!).
  case $bare$bare_keys' ' in
    0*" $key "*) return 0 ;;
    1*) bare_keys="$bare_keys $key" ;;
  esac
  case $key in
    program_name) take_value && PROGRAM=$value ;;
    pid_dir) take_value && is_absolute && PID_DIR=$value ;;
    root_dir) take_value && is_absolute && ROOT_DIR=$value ;;
    ongoing_deployment_tracking) take_value && TRACKING_NAME=$value ;;
    log_dir) take_value && is_absolute && LOG_DIR=$value ;;
    log_aws_wire) take_value && WIRE_LOG=$value ;;
    '<<') UNCERTAIN=$text ;;
  esac
  return 0
}

concerns_us() {
  case $key in program_name | pid_dir | root_dir | ongoing_deployment_tracking | log_dir | log_aws_wire | '<<') ;; *) return 1 ;; esac
}

# Sets key, value and bare (whether the key had no colon in front) of `:key: value`, `key: value`, `"key": value` and `key : value`.
split_entry() {
  case $text in
    \"* | \'*)
      quote=${text%"${text#?}"}
      key=${text#?}
      value=${key#*"$quote"}
      key=${key%%"$quote"*}
      # In quotes the colon belongs to the name, and the agent's generations may differ about that.
      case $key in :* | *\\*) UNCERTAIN=$text ;; esac
      trimmed "$value"
      case $TRIMMED in : | :[[:space:]]*) value=${TRIMMED#:} ;; *) return 1 ;; esac
      ;;
    ['?&*!|>{[%@`']* | '- '*) return 1 ;;
    *:[[:space:]]*)
      key=${text%%:[[:space:]]*}
      value=${text#"$key":}
      ;;
    *:) key=${text%:} value='' ;;
    *) return 1 ;;
  esac
  trimmed "$key"
  key=${TRIMMED#:}
  bare=0
  [ "$key" = "$TRIMMED" ] && bare=1
  return 0
}

# Takes the value out of its quotes, and off a comment behind it.
take_value() {
  trimmed "$value"
  value=$TRIMMED
  case $value in
    \"* | \'*)
      quote=${value%"${value#?}"}
      value=${value#?}
      trimmed "${value#*"$quote"}"
      case $TRIMMED in '' | '#'*) ;; *) UNCERTAIN=$text ;; esac
      value=${value%%"$quote"*}
      case $value in *\\*) UNCERTAIN=$text ;; esac
      ;;
    ['&*!|>{[%@`']*) UNCERTAIN=$text ;;
    *)
      trimmed "${value%%[[:space:]]#*}"
      value=$TRIMMED
      ;;
  esac
  case $value in '' | '~' | null | '#'*) UNCERTAIN=$text ;; esac
  [ -z "$UNCERTAIN" ]
}

is_absolute() { case $value in /*) ;; *) UNCERTAIN=$text && return 1 ;; esac }

# What the configuration does not tell with certainty, the files that the running agent holds open do. The same where it was changed after the agent had started;
# then the agent's own tracking directory counts beside that of the configuration.
ask_open_files() {
  open_pid_file='' open_log='' RUNNING_TRACKING=''
  for process in $AGENTS; do
    links=$(bounded "$ASK_LIMIT" ls -l "/proc/${process%%:*}/fd") || continue
    IFS=$NEWLINE
    for link in $links; do
      link=${link#* -> }
      case $link in
        */deployment-logs/*-deployments.log) RUNNING_TRACKING=${link%/deployment-logs/*}/$TRACKING_NAME ;;
        *.pid.lock) open_pid_file=${link%.lock} ;;
        /*.log) open_log=$link ;;
      esac
    done
    unset IFS
  done
  [ -n "$UNCERTAIN" ] || return 0
  if [ -z "$open_pid_file" ] || [ -z "$open_log" ] || [ -z "$RUNNING_TRACKING" ]; then
    leave_alone "cannot tell which directories the agent uses: $CONFIG has '$UNCERTAIN'"
  fi
  PID_FILE=$open_pid_file LOG=$open_log TRACKING=$RUNNING_TRACKING
}

# Since the agent's start, when it wrote its PID file.
configuration_changed() {
  # shellcheck disable=SC3013 # dash, bash and busybox have -nt
  [ ! -f "$PID_FILE" ] || [ "$CONFIG" -nt "$PID_FILE" ]
}

# ---- the agent's processes, as /proc has them ------------------------------------------------------------------------------------------------------------
# Not by the PID file (absent for a second after the start, stale after a crash), not by systemd's main process (0 for a generated unit, an application that
# remained in the control group otherwise).

# Only what lives in this script's own process namespace and root is this host's: containers have agents, and package managers, of their own. Where the kernel has
# no such links the rule falls away; a process that does not show them is HIDDEN.
is_ours() {
  for link in ns/pid root; do
    [ -e "/proc/self/$link" ] || continue
    # shellcheck disable=SC3013 # dash, bash and busybox have -ef
    [ "/proc/$1/$link" -ef "/proc/self/$link" ] && continue
    # A process that has just ended has no links any more.
    [ -e "/proc/$1/$link" ] || ! read_process "$1" || HIDDEN=$1
    return 1
  done
}

# Looks once at every process, and sets AGENTS, a word `pid:start:parent:kind` for each that has to do with an agent. Kinds: `master` and `poller` of v1, its
# `child` that begins or ends; `start` and `worker` of v2; `other` for whatever else runs the agent's program. Both generations are understood, whatever program is
# on the disk: v1 sets its titles itself (`codedeploy-agent: master 12`, `...: InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller of master 12`, after the
# configured name of the program; runner/master.rb:13, runner/child.rb:80); v2's are its path, perhaps that behind a link, and its argument. `read` takes the zero
# bytes away. Then MASTERS and POLLERS, a word `pid:start` each, and UNCLEAR, what may be a master or belongs to no agent that is known. Fails when a process
# vanished under the look: another may have taken its place unseen.
look_once() {
  AGENTS='' HIDDEN='' vanished=''
  for process in /proc/[0-9]*; do
    title=''
    read -r title < "$process/cmdline"
    case $title in
      *': master '[0-9]* | *' of master '[0-9]* | *': booting child'* | *codedeploy-agent*) ;;
      *) continue ;;
    esac
    # An agent's title is short, and matching a very long one takes a shell seconds.
    [ ${#title} -lt 1000 ] || continue
    pid=${process#/proc/}
    case $title in
      "$PROGRAM: master $pid" | "codedeploy-agent: master $pid") kind=master ;;
      # With another name it is an agent's if it has an agent's child.
      *": master $pid") kind=titled ;;
      *': InstanceAgent::'*'CommandPoller of master '*' - shutting down' | *': booting child'*) kind=child ;;
      *': InstanceAgent::'*'CommandPoller of master '*) kind=poller ;;
      # A shell or an interpreter that runs the program, such as the unit's own `bash -c`.
      /bin/* | /usr/bin/* | /usr/local/bin/* | /sbin/* | /usr/sbin/*) kind=other ;;
      /*)
        case ${title##*/} in
          codedeploy-agentstart | codedeploy-agentrestart | codedeploy-agent[.\ ]*start) kind=start ;;
          codedeploy-agentworker | codedeploy-agent[.\ ]*worker) kind=worker ;;
          *) kind=other ;;
        esac
        ;;
      *) kind=other ;;
    esac
    case $kind:$title in
      other:*/codedeploy-agent/bin/codedeploy-agent* | other:codedeploy-agent*) ;;
      other:* | *:*/deployment-archive/*) continue ;;
    esac
    if read_process "$pid"; then
      is_ours "$pid" && AGENTS="$AGENTS $pid:$STARTED:$PARENT:$kind"
    else
      [ -d "$process" ] || vanished=yes
    fi
  done
  sort_out
  [ -z "$vanished" ]
}

sort_out() {
  named=''
  [ -f "$PID_FILE" ] && read -r named < "$PID_FILE"
  MASTERS='' POLLERS='' UNCLEAR=''
  for process in $AGENTS; do
    pid=${process%%:*}
    started=${process#*:}
    identity=$pid:${started%%:*}
    case $process in
      # A v1 `codedeploy-agent stop` has a master's title while it waits, but neither the PID file nor children.
      *:master)
        case "$named $AGENTS " in
          "$pid "* | *":$pid:poller "* | *":$pid:child "*) MASTERS="$MASTERS $identity" ;;
          *) UNCLEAR="$UNCLEAR $identity" ;;
        esac
        ;;
      *:titled) case "$AGENTS " in *":$pid:poller "*) MASTERS="$MASTERS $identity" ;; esac ;;
      *:start) MASTERS="$MASTERS $identity" ;;
      *:poller) POLLERS="$POLLERS $identity" ;;
      *:worker)
        parent=${process%:worker}
        case "$AGENTS " in *" ${parent##*:}:"*) POLLERS="$POLLERS $identity" ;; esac
        ;;
      *:other) UNCLEAR="$UNCLEAR $identity" ;;
    esac
  done
  # shellcheck disable=SC2086 # one word for each
  count $MASTERS
}

# Sets COUNT, how many masters there are, and MASTER, the first.
count() { COUNT=$# MASTER=${1:-}; }

look() {
  looks=0
  until look_once; do
    looks=$((looks + 1))
    [ "$looks" -lt 10 ] || leave_alone 'processes of the agent vanish faster than they can be looked at'
  done
  [ -z "$HIDDEN" ] || leave_alone "cannot see to which namespace process $HIDDEN belongs, which looks like an agent"
}

# Sets POLLER to the process of MASTER that polls CodeDeploy, once it says that it is ready (v1: before that its title is `booting child`), and KIND to its kind.
find_poller() {
  POLLER=''
  for process in $AGENTS; do
    started=${process#*:}
    case $process in *":${MASTER%%:*}:poller" | *":${MASTER%%:*}:worker") POLLER=${process%%:*}:${started%%:*} KIND=${process##*:} ;; esac
  done
  [ -n "$POLLER" ]
}

# Sets MEMORY, the resident memory of all masters and pollers, in KiB. Not that of the control group, which holds the customer's applications too.
measure_agent() {
  MEMORY=0
  for process in $MASTERS $POLLERS; do
    [ -e "/proc/${process%%:*}" ] || continue
    while read -r name value _; do
      [ "$name" = VmRSS: ] && MEMORY=$((MEMORY + value)) && break
    done < "/proc/${process%%:*}/status"
  done
}

# What the agent held before anything was done to it. One that somebody else stops meanwhile held that, too.
note_memory() {
  measure_agent
  [ -z "$MASTERS" ] || MEMORY_BEFORE=$MEMORY
}

# Sets USER_ID, whose the process is.
read_user() {
  USER_ID=''
  while read -r name value _; do
    [ "$name" = Uid: ] && USER_ID=$value && return
  done < "/proc/$1/status"
  return 1
}

# ---- what must not be disturbed --------------------------------------------------------------------------------------------------------------------------

# Sets EVENT to the deployment whose lifecycle event runs, if one does. The agent keeps a file for it, and so does an agent that died in it. So the file counts if an
# agent lives that is not younger, or the hook does; else it is a LEFTOVER, for which the agent's own stop refuses all the same. The agent ignores files older than a
# day, and so does this.
find_event() {
  EVENT='' LEFTOVER=''
  for file in "$TRACKING"/* ${RUNNING_TRACKING:+"$RUNNING_TRACKING"/*}; do
    [ -f "$file" ] || continue
    file_age "$file"
    [ "$FILE_AGE" -lt "$STALE" ] || continue
    for process in $AGENTS; do
      case $process in *:other) continue ;; esac
      started=${process#*:}
      age_since "${started%%:*}"
      [ "$AGE" -ge $((FILE_AGE - 1)) ] && EVENT=${file##*/} && return
    done
    hook_lives "${file##*/}" && EVENT=${file##*/} && return
    LEFTOVER=yes
  done
}

# Whether a hook of deployment $1 lives. What hooks leave behind inherits the environment too, but in a session of its own, or its process group has lost its leader; a
# hook leads a group of the agent's session (hook_executor.rb:170).
hook_lives() {
  for process in /proc/[0-9]*; do
    carries_deployment "${process#/proc/}" "$1" || continue
    { read_process "${process#/proc/}" && is_ours "${process#/proc/}"; } || continue
    [ "$GROUP" -gt 0 ] && ! [ -d "/proc/$GROUP" ] && continue
    [ "$SESSION" -gt 0 ] && carries_deployment "$SESSION" "$1" && continue
    return 0
  done
  return 1
}

carries_deployment() {
  [ -d "/proc/$1" ] || return
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in *"DEPLOYMENT_ID=$2"*) return 0 ;; esac
  done < "/proc/$1/environ"
  return 1
}

# Sets UPDATE to a package manager or the agent's own installer that is at work, if one is: it would stop and start the agent by itself.
find_update() {
  UPDATE=''
  for process in /proc/[0-9]*; do
    name=''
    read -r name < "$process/comm"
    case $name in
      dpkg | apt | apt-get | aptitude | rpm | yum | dnf | dnf-3 | dnf5 | microdnf | zypper) ;;
      install | update | bash | sh | ruby*)
        title=''
        read -r title < "$process/cmdline"
        case $title in */codedeploy-agent/bin/install* | */codedeploy-agent/bin/update*) name="the agent's installer" ;; *) continue ;; esac
        ;;
      *) continue ;;
    esac
    read_process "${process#/proc/}" && is_ours "${process#/proc/}" && UPDATE="$name (process ${process#/proc/})" && return
  done
}

wait_until_quiet() {
  quiet=0
  while [ "$quiet" -lt "$QUIET_LOOKS" ]; do
    look
    find_event
    find_update
    if [ -z "$EVENT$UPDATE" ]; then
      quiet=$((quiet + 1))
    else
      quiet=0
      is_patient || finish_busy
    fi
    [ "$quiet" -lt "$QUIET_LOOKS" ] && sleep "$LOOK_EVERY"
  done
}

finish_busy() {
  [ -n "$EVENT" ] && finish 20 busy "a lifecycle event of $EVENT still runs after ${BUSY_WAIT_SECONDS} s"
  finish 21 update-running "$UPDATE still runs after ${BUSY_WAIT_SECONDS} s"
}

# ---- systemd -------------------------------------------------------------------------------------------------------------------------------------------

has_systemd() { [ -d /run/systemd/system ]; }

# Asks for what matters of unit $1. systemd 219 (Amazon Linux 2) has no `show --value`. Where LOAD_STATE is empty, systemd did not answer.
ask_unit() {
  SHOWN=$NEWLINE$(bounded "$ASK_LIMIT" systemctl show -p LoadState -p ActiveState -p MainPID -p KillMode -p TimeoutStopUSec -p FragmentPath -p User -p Environment -p ExecStart -p RequiredBy -p BoundBy -p ConsistsOf "$1")$NEWLINE
  property LoadState
  LOAD_STATE=$VALUE
  property KillMode
  KILL_MODE=$VALUE
  property FragmentPath
  FRAGMENT=$VALUE
}

# Sets VALUE to a property of the unit that was asked about.
property() {
  VALUE=''
  case $SHOWN in
    *"$NEWLINE$1="*)
      VALUE=${SHOWN#*"$NEWLINE$1="}
      VALUE=${VALUE%%"$NEWLINE"*}
      ;;
  esac
}

# Sets QUEUED to the kind of job that systemd has for the unit, or for one that has a drop-in of ours (`start`, `stop`, `restart` ...), or to nothing. Fails when
# systemd does not tell.
find_job() {
  QUEUED=''
  has_systemd || return 0
  units=" $UNIT "
  for ours in /run/systemd/system/*.service.d/"$DROP_IN_NAME"; do
    ours=${ours%.d/*}
    units="$units${ours##*/} "
  done
  jobs=$(bounded "$ASK_LIMIT" systemctl list-jobs --no-legend --no-pager) || return
  # shellcheck disable=SC2086 # number, unit, type and state of each job
  set -- $jobs
  while [ $# -ge 3 ]; do
    case $units in *" $1 "*) QUEUED=$2 ;; esac
    # The transient unit's own job is its start; while it runs, a restart is under way.
    [ "$1" = "$JOB_UNIT" ] && QUEUED=restart
    shift
  done
  [ -n "$QUEUED" ] || ! job_runs || QUEUED=restart
}

# systemd 219 keeps it in the other place.
job_runs() { { [ -e "/run/systemd/transient/$JOB_UNIT" ] || [ -e "/run/systemd/system/$JOB_UNIT" ]; } && bounded "$ASK_LIMIT" systemctl is-active -q "$JOB_UNIT"; }

# systemd would kill the whole control group at a stop: hooks, and applications that hooks started. With KillMode=process only the master is asked to end, and
# it drains, for as long as it needs. The PID file makes systemd wait for the new master, and know the right process although an application remains in the group;
# but only where it named the old one, or systemd would wait for a file that never comes; and not in a unit made from the init script, whose start may be a no-op.
put_drop_in() {
  DROP_IN=/run/systemd/system/$UNIT.d/$DROP_IN_NAME
  mkdir -p "${DROP_IN%/*}"
  {
    echo '[Service]'
    echo 'KillMode=process'
    echo "KillSignal=SIGTERM"
    echo "TimeoutStopSec=$DRAIN_LIMIT"
    case $NAMED_BY_PID_FILE:$FRAGMENT in yes:*generator*) ;; yes:*) echo "PIDFile=$PID_FILE" ;; esac
    true
  } > "$DROP_IN" || leave_alone "cannot write $DROP_IN"
  bounded "$ASK_LIMIT" systemctl daemon-reload
  ask_unit "$UNIT"
  property TimeoutStopUSec
  [ "$KILL_MODE:$VALUE" = process:2h ] || leave_alone "systemd does not take $DROP_IN: $UNIT has KillMode=$KILL_MODE and TimeoutStopUSec=$VALUE"
}

# Removes what this run, or one that was killed, has put there; what another run has put there is that run's. Not while a job is queued, nor when systemd does not
# answer, or tries to start the unit again and again: it would bring back the kill of the whole group.
clear_drop_in() {
  [ -n "$LOCKED" ] || return
  for file in /run/systemd/system/*.service.d/"$DROP_IN_NAME"; do
    [ -f "$file" ] || continue
    find_job && [ -z "$QUEUED" ] || return
    dropped=${file%.d/*}
    ask_unit "${dropped##*/}"
    property ActiveState
    case $VALUE in active | inactive | failed) ;; *) return ;; esac
    rm -f "$file"
    rmdir "${file%/*}"
    bounded "$ASK_LIMIT" systemctl daemon-reload
  done
}

# What systemd has begun ends by itself, such as the restart of a run before this one when the lifecycle event ends; then everything is decided anew.
wait_for_queued_job() {
  while :; do
    find_job || leave_alone 'systemd does not answer'
    [ -n "$QUEUED" ] || return
    is_patient || finish_queued
    sleep "$LOOK_EVERY"
  done
}

finish_queued() {
  case $QUEUED in
    *restart)
      find_event
      finish 34 draining "the agent ${EVENT:+finishes a lifecycle event first and }has not ended yet; the queued restart follows by itself"
      ;;
    stop) finish 34 draining 'somebody has stopped the agent, which still finishes a lifecycle event; nothing starts it afterwards: repeat when it has ended' ;;
    *) finish 22 restart-running "systemd has not come to the $QUEUED of $UNIT yet: see 'systemctl list-jobs'" ;;
  esac
}

# ---- the proof of health -----------------------------------------------------------------------------------------------------------------------------------

# Sets POLLS to what the agent's log says of the polls of MASTER and POLLER: `good`; `bad N TEXT`, N polls in a row were refused; `ending`, somebody has asked it to
# end; `none`, although the log is that of this agent; `unknown` where no line is (moved, rotated away, full, of another form), or nothing when it could not be read.
# A line holds the number of the process that wrote it. v1 logs each poll when it ends, `200 ... poll_host_command`, and each bad one (agent/base.rb:30-45). v2 logs
# that a worker enters its loop, and then only bad polls; one that does not get there ends within 20 s. What a log says counts for RECENT seconds, but not from
# before the poller's start: numbers are used again. Other errors (a customer's hook, the report of a leftover) mean nothing.
read_log() {
  POLLS=unknown
  [ -f "$LOG" ] || return
  age_since "${POLLER#*:}"
  entered=''
  [ "$KIND" = worker ] && [ "$AGE" -gt 60 ] && entered=1
  limit=$((AGE + 2))
  [ "$limit" -le "$RECENT" ] || limit=$RECENT
  POLLS=$(
    {
      bounded "$ASK_LIMIT" tail -n 2000 "$LOG"
      ended=$?
      echo
      echo "read $ended"
    } | awk -v recent="$(find -L "$LOG" -mmin "-$((RECENT / 60))")" -v master="(${MASTER%%:*})]:" -v poller="(${POLLER%%:*})]:" -v worker="Worker ${POLLER%%:*} " -v entered="$entered" -v limit="$limit" -v wire="$WIRE_LOG" '
      function seconds(year, month, day, hour, minute, second) {
        if (month < 3) { year--; month += 12 }
        return ((365 * year + int(year / 4) - int(year / 100) + int(year / 400) + int((153 * month - 457) / 5) + day) * 24 + hour) * 3600 + minute * 60 + second
      }
      { read = $0 == "read 0" }
      # The report of a failed hook, with what that hook printed.
      /put_host_command_complete\(/ { next }
      /^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]/ {
        at = seconds(substr($0, 1, 4), substr($0, 6, 2), substr($0, 9, 2), substr($0, 12, 2), substr($0, 15, 2), substr($0, 18, 2))
      }
      index($0, master) || index($0, poller) || index($0, worker) { known = 1 }
      index($0, worker) && /entering polling loop/ { entered = 1; errors = tries = 0 }
      !entered && !index($0, poller) { next }
      index($0, poller " [Aws::CodeDeployCommand::Client 200 ") && /\] poll_host_command/ { good = at; polled = 1; errors = tries = 0 }
      /CommandPoller: (Missing credentials|Cannot reach InstanceService|Network error)/ { errors++; text = $0; failed = at }
      /Error polling for host commands/ { tries++; if (errors < tries) text = $0; failed = at }
      /Received (TERM|INT|QUIT) - setting internal shutting down flag/ { asked = at; ending = 1 }
      END {
        if (!read) exit
        if (tries > errors) errors = tries
        if (at - failed > limit || entered && !recent) errors = 0
        if (at - asked > limit) ending = 0
        sub(/^[^]]*\]: /, "", text); sub(/^InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller: /, "", text)
        if (ending) print "ending"
        else if (errors) print "bad " errors " " substr(text, 1, 300)
        else if (entered || polled && recent && at - good <= limit) print "good"
        else if (known && wire != "true") print "none"
        else print "unknown"
      }'
  )
}

# Exactly one master, its poller ready, both the same for $STABLE seconds, and heard by CodeDeploy. Whoever else restarts the agent meanwhile (an `at` job of a hook,
# cron, needrestart) is looked through: the newer one is proven. Sets PROVEN to what could not be seen; else fails, and PROOF_CODE, PROOF_RESULT and PROOF_DETAIL
# say what is wrong. `is-active` and the agent's own `status` are no proof: both are content with an agent whose poller never lives.
is_healthy() {
  watched='' deaths=0 changes=0 PROVEN='' PROOF_CODE=''
  at_most "$READY_LIMIT"
  end=$((NOW + LEFT))
  while :; do
    tick
    if [ "$NOW" -ge $((BEGAN + DEADLINE)) ]; then
      disproved 33 agent-unhealthy "the time was over before the new agent was proven healthy$(log_says)"
      return 1
    fi
    if [ -n "$watched" ] && is_alive "$watched_master" && is_alive "$watched"; then
      if [ $((NOW - since)) -ge "$STABLE" ] && is_heard; then
        look
        [ "$COUNT" -eq 1 ] && old_is_gone && return
        several_run
        return 1
      fi
      [ -z "$PROOF_CODE" ] || return 1
    else
      if [ -n "$watched" ]; then
        # A poller dies with its master: a moment later it shows which of them it was.
        sleep 1
        if is_alive "$watched_master"; then deaths=$((deaths + 1)); else changes=$((changes + 1)); fi
        watched=''
        [ "$deaths" -lt 2 ] || { disproved 33 agent-unhealthy "the poller dies again and again$(log_says)" && return 1; }
        [ "$changes" -lt 4 ] || { disproved 32 agent-down "the master dies again and again$(log_says)" && return 1; }
        at_most "$READY_LIMIT"
        end=$((NOW + LEFT))
      fi
      look
      if [ "$COUNT" -eq 1 ] && find_poller; then
        watched_master=$MASTER watched=$POLLER since=$NOW looked=0 PROOF_CODE=''
      elif tick && [ "$NOW" -ge "$end" ]; then
        unhealthy_start
        return 1
      fi
    fi
    sleep 1
  done
}

# Whether CodeDeploy hears the agent that is watched, as far as its log tells. Disproves what it does not hear.
is_heard() {
  [ $((NOW - looked)) -ge 3 ] || return
  looked=$NOW
  read_log
  waited=$((NOW - since))
  late=''
  [ "$waited" -ge "$PROOF_LIMIT" ] && late=yes
  case $POLLS:$KIND:$late in
    good:*)
      PROVEN=''
      return 0
      ;;
    unknown:*)
      PROVEN="no poll was seen: $LOG tells nothing of this agent"
      [ "$waited" -ge "$BLIND_LIMIT" ]
      return
      ;;
    # After one bad poll v2 says nothing of the good ones that followed.
    'bad 1 '*:worker:yes) return 0 ;;
    'bad 1 '*:) ;;
    bad*)
      POLLS=${POLLS#bad }
      disproved 33 agent-unhealthy "CodeDeploy does not hear the agent; log: ${POLLS#* }"
      ;;
    ending:*:yes) disproved 34 draining 'somebody else has asked the agent to end, and it still finishes' ;;
    *:yes) disproved 33 agent-unhealthy "the poller is ready, but no poll of its ended within $waited s$(log_says)" ;;
  esac
  return 1
}

# What of the replaced agent still runs.
old_is_gone() {
  for old in $REPLACED; do is_alive "$old" && return 1; done
  return 0
}
REPLACED=''

several_run() {
  if [ "$COUNT" -gt 1 ]; then
    disproved 31 old-agent-survived "several masters run:$MASTERS"
  elif old_is_gone; then
    disproved 32 agent-down "the master died after the start$(log_says)"
  else
    disproved 31 old-agent-survived "process ${old%%:*} of the old agent still runs"
  fi
}

unhealthy_start() {
  case $COUNT in
    0) disproved 32 agent-down "no master runs$(log_says)" ;;
    1)
      if is_ending; then
        disproved 34 draining 'somebody else has asked the agent to end, and it still finishes'
      else
        disproved 33 agent-unhealthy "the poller is not ready$(log_says)"
      fi
      ;;
    *) several_run ;;
  esac
}

is_ending() {
  for process in $AGENTS; do
    read -r title < "/proc/${process%%:*}/cmdline"
    case $process:$title in *:child:*'shutting down'*) return 0 ;; esac
  done
  return 1
}

disproved() { PROOF_CODE=$1 PROOF_RESULT=$2 PROOF_DETAIL=$3; }

# The last errors of the agent's log, for the detail of a failure.
log_says() {
  [ -f "$LOG" ] || return
  errors=$(bounded "$ASK_LIMIT" tail -n 400 "$LOG" | grep -aE '(ERROR|WARN|FATAL)' | tail -n 2 | cut -c 1-250)
  [ -z "$errors" ] || printf '; log: %s' "$errors"
}

# ---- the decisions -----------------------------------------------------------------------------------------------------------------------------------------

# Notes which agent runs, and ends if it needs no restart. Done again after every wait, since another run, or an update, may have restarted it meanwhile.
decide_about_the_running_agent() {
  look
  # One look may fall between two masters. And between the end of its poller and the next one, a master without PID file cannot be told from a `stop`.
  seen=$UNCLEAR
  tries=0
  while [ "$COUNT" -eq 0 ] && [ "$tries" -lt 4 ]; do
    [ -z "$UNCLEAR" ] && [ "$tries" -gt 0 ] && break
    sleep "$LOOK_EVERY"
    look
    tries=$((tries + 1))
  done
  [ "$COUNT" -gt 0 ] || refuse_unknown_agents
  await_worker
  OLD=$MASTERS
  note_memory
  [ "$COUNT" -eq 1 ] || return
  if is_fresh "$MASTER"; then
    is_healthy && finish 0 already-restarted "$PROVEN"
    # A fresh agent that is not healthy is told, not restarted again: the restart did not help it. One that has died is started.
    [ "$PROOF_CODE" = 32 ] || finish "$PROOF_CODE" "$PROOF_RESULT" "$PROOF_DETAIL"
    OLD=''
  elif is_small; then
    is_healthy && finish 0 below-threshold "$PROVEN"
  fi
}

# What has been there all the time, and runs the agent's program: a master without poller and PID file, or something that is left alone.
refuse_unknown_agents() {
  for process in $UNCLEAR; do
    case " $seen " in *" $process "*) ;; *) continue ;; esac
    title=''
    read -r title < "/proc/${process%%:*}/cmdline"
    case $title in *": master ${process%%:*}") MASTERS="$MASTERS $process" && continue ;; esac
    leave_alone "process ${process%%:*} ($title) runs the agent's program, but is not an agent that is known"
  done
  # shellcheck disable=SC2086 # one word for each
  count $MASTERS
}

# A process that only looks like v2's master is told from one whose worker has died.
await_worker() {
  at_most "$WORKER_LIMIT"
  end=$((NOW + LEFT))
  while :; do
    lonely=''
    for process in $AGENTS; do
      case $process in *:start) case "$AGENTS " in *":${process%%:*}:worker "*) ;; *) lonely=${process%%:*} ;; esac ;; esac
    done
    [ -n "$lonely" ] || return
    tick
    [ "$NOW" -lt "$end" ] || leave_alone "process $lonely has had no worker for $WORKER_LIMIT s: it is not an agent that is known"
    sleep 1
    look
  done
}

# The agent started at or after the deployment ended: its age when this script began is at most the time between the deployment's end and the sending, both by
# the function's clock. No two machines' clocks are compared. A late delivery only makes an agent look older than it is. One that started after this script began,
# while it waited for another run's lock, is as fresh as can be.
is_fresh() {
  [ -n "$TRIGGERED_AT" ] && [ -n "$SENT_AT" ] && [ $((BEGAN_TICKS - ${1#*:})) -le $(((SENT_AT - TRIGGERED_AT) * 100)) ]
}

is_small() { [ "$MIN_MEMORY_MIB" -gt 0 ] && [ "$MEMORY" -lt $((MIN_MEMORY_MIB * 1024)) ]; }

# ---- whether it would come back ------------------------------------------------------------------------------------------------------------------------------

# Sets UNIT to the unit that restarts this agent, and OUTSIDE to the masters which a restart of the unit would not stop: it knows nothing of them (the Debian package
# starts the agent so, and so does whoever calls its program), its main process is another, or it would only call a stop that refuses.
find_unit() {
  UNIT=$OWN_UNIT OUTSIDE=''
  for master in $OLD; do
    unit_of "${master%%:*}"
    case $IN_UNIT in
      "$OWN_UNIT") ;;
      *.service)
        ask_unit "$IN_UNIT"
        [ -n "$LOAD_STATE" ] || leave_alone "systemd does not tell about $IN_UNIT"
        property MainPID
        main=$VALUE
        property ExecStart
        case $main:$VALUE in
          "${master%%:*}:"* | *codedeploy-agent*)
            [ "$KILL_MODE" = process ] || leave_alone "the agent runs in $IN_UNIT, of which a restart would kill everything (KillMode=$KILL_MODE): set KillMode=process there"
            UNIT=$IN_UNIT
            ;;
          *) OUTSIDE="$OUTSIDE $master" ;;
        esac
        ;;
      *) OUTSIDE="$OUTSIDE $master" ;;
    esac
  done
  ask_unit "$UNIT"
  [ "$LOAD_STATE" = masked ] && leave_alone "the unit $UNIT is masked"
  [ "$LOAD_STATE" = loaded ] || leave_alone "systemd does not know the unit $UNIT (${LOAD_STATE:-it does not answer})"
  for name in RequiredBy BoundBy ConsistsOf; do
    property "$name"
    for dependent in $VALUE; do
      case $dependent in *.target) ;; *) leave_alone "systemd would stop or restart $dependent with $UNIT ($name=$dependent)" ;; esac
    done
  done
  property MainPID
  main=$VALUE
  property ActiveState
  case $VALUE:$FRAGMENT:$LEFTOVER in
    inactive:* | failed:* | *:*generator*:yes) OUTSIDE=$OLD ;;
    *:*generator*) ;;
    # systemd would ask nobody to end, and forget the PID file.
    *) case "$OLD " in *" $main:"*) ;; *) OUTSIDE=$OLD ;; esac ;;
  esac
}

# Sets IN_UNIT to the service in whose control group a process is, if it is in one.
unit_of() {
  IN_UNIT=''
  while IFS=: read -r _ controllers path; do
    case $controllers:$path in
      :*.service* | name=systemd:*.service*)
        IN_UNIT=${path%.service*}.service
        IN_UNIT=${IN_UNIT##*/}
        ;;
    esac
  done < "/proc/$1/cgroup"
}

# Whether nobody but root can put anything into the directory of the PID file, nor replace it: elsewhere a link may stand in place of a file, or of the directory itself.
# So it must be root's alone, and so must every directory on the way to it, by the path as it is written and as it is.
find_own_directory() {
  OWN_DIRECTORY=''
  physical=''
  cd -P "${PID_FILE%/*}" && physical=$PWD
  cd /
  [ -n "$physical" ] || return
  set -- /
  for directory in "${PID_FILE%/*}" "$physical"; do
    while [ -n "$directory" ]; do
      set -- "$@" "$directory"
      directory=${directory%/*}
    done
  done
  foreign=$(find "$@" -prune \( ! -user 0 -o ! -type l \( -perm -0020 -o -perm -0002 \) \)) && [ -z "$foreign" ] && OWN_DIRECTORY=${PID_FILE%/*}
}

# The agent's own commands, which systemd calls too, believe the PID file. If it is wrong, `status` says that nothing runs, and `stop` ends whatever process has
# that number now.
correct_pid_file() {
  NAMED_BY_PID_FILE=''
  [ -n "$OWN_DIRECTORY" ] || return 0
  if [ "$named" = "${MASTER%%:*}" ]; then
    for process in $AGENTS; do
      case $process in "$MASTER:"*:master) NAMED_BY_PID_FILE=yes ;; esac
    done
  elif [ "$COUNT" -lt 2 ]; then
    rm -f "$PID_FILE"
    [ "$COUNT" -eq 0 ] || { echo "${MASTER%%:*}" > "$PID_FILE"; } || leave_alone "cannot write $PID_FILE"
  fi
}

# On a full disk the agent's PID file would be empty; systemd, which waits for it, would take the start for a failure and end the agent.
check_the_disk() {
  [ -n "$OWN_DIRECTORY" ] || return 0
  probe=$OWN_DIRECTORY/.agent-restart-probe
  rm -f "$probe"
  { echo probe > "$probe"; }
  if [ -s "$probe" ]; then rm -f "$probe"; else
    rm -f "$probe"
    leave_alone "cannot write to $OWN_DIRECTORY"
  fi
}

# A new agent would not start if its configuration, interpreter or libraries are broken on disk: its own `status` would not work either. It is asked as the unit asks
# it: with /etc/profile (where rbenv and the like put Ruby on the path), as the unit's user, and without this script's environment.
check_its_program() {
  [ -n "$OLD" ] || return 0
  environment='' user='' VALUE=''
  if has_systemd; then
    property Environment
    case $VALUE in *[\"\'\\[]*) ;; *) environment=$VALUE ;; esac
    property User
    user=$VALUE
    property ExecStart
  else
    FRAGMENT=generator
  fi
  # shellcheck disable=SC2016 # that shell expands it
  case $FRAGMENT:$VALUE in
    *generator*) set -- "$INIT_SCRIPT" status ;;
    *:*/etc/profile*) set -- /bin/bash -a -c '[ -f /etc/profile ] && source /etc/profile; exec "$0" status' "$CLI" ;;
    *) set -- "$CLI" status ;;
  esac
  case $user in '' | root | 0) ;; *) set -- runuser -u "$user" -- "$@" ;; esac
  # Into a file: a pipe would be waited for as long as anything that a profile has started holds it.
  # shellcheck disable=SC2086 # a word for each variable
  bounded "$STATUS_LIMIT" env -i PATH="$PATH" $environment "$@" > "$LOCK.said" 2>&1
  code=$?
  [ "$code" -eq 0 ] || said=$(grep -av '^[[:space:]]*from ' "$LOCK.said" | tail -n 3 | cut -c 1-250)
  rm -f "$LOCK.said"
  [ "$code" -eq 0 ] || leave_alone "the agent runs, but '$CLI status' ends with $code: $said"
}

# ---- the restart -------------------------------------------------------------------------------------------------------------------------------------------

# Runs what asks for the restart, for at most RESTART_LIMIT seconds, and sets ENDED to its exit status, or to 124 while it goes on. Not through `bounded`: as long as
# this process could not be started, nothing has been asked for.
ask_for_restart() {
  REPLACED="$MASTERS $POLLERS"
  "$@" 3>&- 9>&- &
  DONE=asked
  asking=$!
  read_process "$asking" && asking=$asking:$STARTED
  at_most "$RESTART_LIMIT"
  end=$((NOW + LEFT))
  ENDED=124
  while is_alive "$asking"; do
    tick
    [ "$NOW" -lt "$end" ] || return 0
    sleep 1
  done
  wait "${asking%%:*}"
  ENDED=$?
}

# What is handed over to somebody who outlives this script: ends the given masters as the agent's own stop does, waits for them, and starts the agent again.
# shellcheck disable=SC2016 # another shell expands it
END_THEN_START='
  limit=$1 start=$2
  shift 2
  kill -TERM "$@"
  for pid; do
    while [ "$limit" -gt 0 ] && kill -0 "$pid"; do
      sleep 1
      limit=$((limit - 1))
    done
  done
  $start
  exit 0'

restart_with_systemd() {
  put_drop_in
  # After too many failed starts systemd refuses another one until this. 125 and above: nothing could be started.
  bounded "$ASK_LIMIT" systemctl reset-failed "$UNIT"
  [ $? -lt 125 ] || leave_alone "$NO_TASK"
  note_refusal
  before=$REFUSAL
  if [ -n "$OUTSIDE" ]; then
    bounded "$ASK_LIMIT" systemctl reset-failed "$JOB_UNIT"
    [ $? -lt 125 ] || leave_alone "$NO_TASK"
    set -- /bin/sh -c "$END_THEN_START" job "$DRAIN_LIMIT" "systemctl restart $UNIT"
    for master in $OUTSIDE; do set -- "$@" "${master%%:*}"; done
    ask_for_restart systemd-run --unit="$JOB_UNIT" --description='Restarts the CodeDeploy agent' "$@"
    case $ENDED in
      0) await_old ;;
      126 | 127) DONE=untouched && leave_alone 'systemd-run cannot be started' ;;
      *) finish 34 draining "systemd-run ended with $ENDED; the restart that it asked for may go on by itself" ;;
    esac
  else
    ask_for_restart systemctl restart "$UNIT"
  fi
  if ! old_is_gone && find_job; then
    case $QUEUED in stop | *restart) finish_queued ;; esac
  fi
  DONE=touched
  case $ENDED in
    0) ;;
    124) kill "${asking%%:*}" ;;
    *) RESTART_FAILED="systemctl restart ended with $ENDED: $(bounded "$ASK_LIMIT" journalctl -u "$UNIT" -n 4 --no-pager -o cat | cut -c 1-150)" ;;
  esac
  refuse_survivors
}
RESTART_FAILED=''

# Waits until none of the old masters runs any more.
await_old() {
  at_most "$RESTART_LIMIT"
  end=$((NOW + LEFT))
  until old_is_gone; do
    tick
    [ "$NOW" -lt "$end" ] || return 0
    sleep 1
  done
}

# In a session of its own, so that it goes on whoever ends this script, and with an environment of its own, which the agent and its hooks would inherit.
restart_with_init_script() {
  command -v setsid || leave_alone 'there is neither systemd nor setsid'
  note_refusal
  before=$REFUSAL
  if [ -n "$LEFTOVER" ] && [ -n "$OLD" ]; then
    set -- "$END_THEN_START" job "$DRAIN_LIMIT" "$INIT_SCRIPT start"
    for master in $OLD; do set -- "$@" "${master%%:*}"; done
  elif [ -n "$OLD" ]; then
    # shellcheck disable=SC2016 # that shell expands it
    set -- '"$1" stop && sleep 1 && "$1" start' job "$INIT_SCRIPT"
  else
    # shellcheck disable=SC2016 # that shell expands it
    set -- '"$1" start' job "$INIT_SCRIPT"
  fi
  ask_for_restart setsid env -i PATH="$PATH" /bin/sh -c "$@"
  [ "$ENDED" -eq 124 ] && [ -n "$OLD" ] && ! old_is_gone && finish 34 draining 'the agent finishes a lifecycle event first; the start follows by itself'
  DONE=touched
  refuse_survivors
  [ "$ENDED" -eq 0 ] || RESTART_FAILED="$INIT_SCRIPT ended with $ENDED"
}

# Sets REFUSAL to the last time that the agent's own stop refused, as its log tells (runner/master.rb:40).
note_refusal() {
  REFUSAL=''
  [ -f "$LOG" ] || return 0
  # shellcheck disable=SC2016 # awk expands it
  REFUSAL=$(bounded "$ASK_LIMIT" awk '/will not be shut down right now/ { last = $0 } END { print last }' "$LOG")
  [ $? -lt 125 ] || leave_alone "$NO_TASK"
}

# The exit status of a restart is no proof: with a generated unit it is 0 although the agent refused to stop.
refuse_survivors() {
  for old in $OLD; do
    is_alive "$old" || continue
    note_refusal
    find_event
    [ "$REFUSAL$EVENT" = "$before" ] || finish 20 busy 'the agent refused to stop: a lifecycle event ran'
    finish 31 old-agent-survived "master ${old%%:*} still runs: the restart did nothing to it${RESTART_FAILED:+ ($RESTART_FAILED)}"
  done
}

# Ends with the result $1 if the agent is healthy, else with what is wrong. Where nothing runs, one more start is tried first.
finish_proven() {
  is_healthy && finish 0 "$1" "$PROVEN"
  if [ "$PROOF_CODE" = 32 ]; then
    if has_systemd; then
      bounded "$ASK_LIMIT" systemctl reset-failed "$UNIT"
      bounded "$RESTART_LIMIT" systemctl restart "$UNIT"
    else
      bounded "$READY_LIMIT" env -i PATH="$PATH" "$INIT_SCRIPT" start || RESTART_FAILED="$INIT_SCRIPT start ended with $?"
    fi
    is_healthy && finish 0 "$1" "$PROVEN"
    [ "$PROOF_CODE" = 32 ] && [ -n "$RESTART_FAILED" ] && finish 30 service-manager-failed "$RESTART_FAILED"
  fi
  finish "$PROOF_CODE" "$PROOF_RESULT" "$PROOF_DETAIL"
}

# ---- the story ---------------------------------------------------------------------------------------------------------------------------------------------

main() {
  # Old busybox knows another form of it, and small systems have none.
  HAVE_TIMEOUT=''
  timeout 5 true
  case $? in
    0) HAVE_TIMEOUT=yes ;;
    1 | 127) ;;
    *) leave_alone "$NO_TASK" ;;
  esac
  read_configuration
  read_version
  read_user self
  [ "$USER_ID" = 0 ] || finish 11 not-root 'run it as root'
  look
  if ! [ -x "$CLI" ]; then
    find_update
    [ -n "$UPDATE" ] && finish 21 update-running "$UPDATE is at work, and there is no $CLI"
    [ -n "$MASTERS$UNCLEAR" ] && leave_alone "there is no $CLI, though an agent runs"
    finish 10 not-installed "there is no $CLI"
  fi
  note_memory
  if [ -n "$MASTERS" ] && { [ -n "$UNCERTAIN" ] || configuration_changed; }; then ask_open_files; fi

  take_lock
  wait_for_queued_job
  # A drop-in that a dead run left is taken away when this run ends: until then it protects the host as well as a new one.
  decide_about_the_running_agent

  # A decision may take a minute: it must be quiet before it and after it.
  while :; do
    wait_until_quiet
    decide_about_the_running_agent
    find_event
    find_update
    [ -n "$EVENT$UPDATE" ] || break
    is_patient || finish_busy
  done
  if has_systemd; then find_unit; elif ! [ -x "$INIT_SCRIPT" ]; then leave_alone "there is no systemd and no $INIT_SCRIPT"; fi
  find_own_directory
  correct_pid_file
  check_the_disk
  check_its_program
  if has_systemd; then restart_with_systemd; else restart_with_init_script; fi
  if [ -n "$OLD" ]; then finish_proven restarted; else finish_proven started; fi
}

read_version() {
  [ -f "$AGENT/.version" ] || return
  while read -r name value; do
    [ "$name" = agent_version: ] && VERSION=$value && return
  done < "$AGENT/.version"
}

main
