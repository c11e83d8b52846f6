#!/bin/sh
# Restarts the CodeDeploy agent of this host when that hurts nothing, proves that a new, working agent is there, and says so in one line of JSON.
#
# POSIX sh (dash, bash, busybox ash), run as root by Systems Manager Run Command. The contract (parameters, codes, the line) is in README.md beside this file.
# The steps are in main(), at the end; each function above it is named by what it does or proves.
#
# Two things decide how it goes about it. The agent's own stop refuses while a lifecycle event runs, but systemd kills the unit's whole control group after
# that refusal: the hook, and every application that a hook ever started. And no exit status proves anything: a restart can be a silent no-op, and
# `is-active` is also said of an agent that crash-loops. So the kill mode is changed before anything is asked of systemd, and the proof is looked for in /proc.

set -u
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 022

# The line goes to what was standard output. Nothing else may: Systems Manager keeps 2,500 bytes, and error text would push the line out.
exec 3>&1 >/dev/null 2>&1 </dev/null

# What the function asks for. Without the first two (by hand) no agent counts as fresh.
TRIGGERED_AT=${TRIGGERED_AT:-}
SENT_AT=${SENT_AT:-}
BUSY_WAIT_SECONDS=${BUSY_WAIT_SECONDS:-120}
MIN_MEMORY_MIB=${MIN_MEMORY_MIB:-0}

# Times in seconds. The tests can lower them; nothing else does.
lowered() { if [ -n "$2" ] && [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi; }
STATUS_LIMIT=$(lowered 30 "${TEST_STATUS_LIMIT:-}")    # the agent's own `status`
STOP_LIMIT=$(lowered 60 "${TEST_STOP_LIMIT:-}")        # stopping an agent that runs outside its unit
RESTART_LIMIT=$(lowered 150 "${TEST_RESTART_LIMIT:-}") # a restart: it ends with the current long poll, up to 80 s
READY_LIMIT=$(lowered 60 "${TEST_READY_LIMIT:-}")      # until a new poller says that it is ready
STABLE=$(lowered 12 "${TEST_STABLE:-}")                # the same processes for this long; a crash loop turns every 5 s
ASK_LIMIT=20                                           # any question to systemd
DEADLINE=$((BUSY_WAIT_SECONDS + 300))                  # of this script; Systems Manager would kill it 60 s later, without a line
QUIET_LOOKS=3                                          # the tracking directory is empty between two lifecycle events, so look again
LOOK_EVERY=2

AGENT=/opt/codedeploy-agent
CLI=$AGENT/bin/codedeploy-agent
UNIT=codedeploy-agent
INIT_SCRIPT=/etc/init.d/codedeploy-agent
LOCK=/run/codedeploy-agent-restart.lock
# Runtime only: it is gone after a reboot, whatever happens to this script.
DROP_IN=/run/systemd/system/$UNIT.service.d/90-agent-restart.conf

# ---- time and bounds ----------------------------------------------------------------------------------------------------------------------------------

# Seconds since boot. The wall clock may be wrong, and may be set while this runs.
now() { read -r up _ < /proc/uptime && echo "${up%%.*}"; }
# Hundredths of a second since boot: the unit in which the kernel tells when a process started.
now_ticks() { read -r up _ < /proc/uptime && echo $((${up%%.*} * 100 + 1${up#*.} - 100)); }

BEGAN=$(now)
BEGAN_TICKS=$(now_ticks)

# Seconds that are left of this script, or of $1 if that is less. Never less than 5, though: a question that nobody has time to answer would be taken for a no.
at_most() {
  left=$((BEGAN + DEADLINE - $(now)))
  [ "$left" -lt 5 ] && left=5
  [ "$left" -gt "$1" ] && left=$1
  echo "$left"
}

# Runs a command for at most $1 seconds; 124 when it had to be ended. Descriptors 3 and 9 are closed: an agent that inherits the first would make Systems
# Manager wait for its end, and one that inherits the second would keep the lock for ever.
bounded() {
  limit=$(at_most "$1")
  shift
  if [ -n "$HAVE_TIMEOUT" ]; then
    timeout "$limit" "$@" 3>&- 9>&-
    ended=$?
    # Some busybox say that the command was ended by a signal, which is the same.
    [ "$ended" -eq 143 ] && ended=124
    return "$ended"
  fi
  "$@" 3>&- 9>&- &
  child=$!
  end=$(($(now) + limit))
  while kill -0 "$child"; do
    if [ "$(now)" -ge "$end" ]; then
      kill "$child"
      return 124
    fi
    sleep 1
  done
  wait "$child"
}
# Old busybox knows another form of it.
HAVE_TIMEOUT=''
timeout 5 true && HAVE_TIMEOUT=yes

# ---- the one line --------------------------------------------------------------------------------------------------------------------------------------

# Text as the inside of a JSON string, at most $1 bytes: ASCII without control characters, quotes or backslashes, so that nothing has to be escaped.
json_text() { printable | tr '"' "'" | tr '\134' / | tr -s ' ' | cut -c "1-$1" | sed 's/ *$//'; }

# Logs hold control characters and other people's encodings; grep would call them binary.
printable() { tr -c '\012\040-\176' ' '; }

MEMORY_BEFORE=0
VERSION=''
# Nothing has been done to the agent so far.
UNTOUCHED=yes

# Prints the line and ends. $1: exit code, $2: result, $3: detail.
finish() {
  trap - EXIT
  trap '' HUP INT TERM
  # An agent that is down may be in systemd's hands, which starts it again and again: each failure would kill the applications without the drop-in. The same if
  # the old agent survived a restart: the new one that finds it running may end only after this, and its failure would kill a hook. The next run clears it.
  case $1 in
    30 | 32) ;;
    20 | 31) [ -n "$UNTOUCHED" ] && clear_drop_in ;;
    *) clear_drop_in ;;
  esac
  release_lock
  printf '{"agentRestart":1,"result":"%s","code":%d,"agentVersion":"%s","memoryBeforeKiB":%d,"memoryAfterKiB":%d,"seconds":%d,"detail":"%s"}\n' \
    "$2" "$1" "$(printf %s "$VERSION" | tr '\n' ' ' | json_text 60)" "$MEMORY_BEFORE" "$(all_memory)" "$(($(now) - BEGAN))" "$(printf %s "$3" | tr '\n' ' ' | json_text 600)" >&3
  exit "$1"
}

# ---- the lock: one run at a time on this host ------------------------------------------------------------------------------------------------------------

# Until when this run waits for other things on the host.
PATIENCE_END=$((BEGAN + BUSY_WAIT_SECONDS))

# With flock the kernel frees the lock of a run that was killed. Without it a symbolic link holds the owner's identity, so that a dead owner shows.
take_lock() {
  (: >> "$LOCK.file") || finish 12 preflight-failed "cannot write to ${LOCK%/*}; the agent was left alone"
  if command -v flock; then
    exec 9>> "$LOCK.file"
    until flock -n 9; do wait_for_lock; done
  else
    until ln -s "$$:$(started_at $$)" "$LOCK.owner"; do
      owner=$(readlink "$LOCK.owner")
      if [ -n "$owner" ] && [ "$(started_at "${owner%%:*}")" != "${owner#*:}" ]; then
        # Renaming is atomic: of several runs that find the dead owner, one gets it. It looks again what it got, since another may have been faster altogether.
        mv "$LOCK.owner" "$LOCK.dead.$$" && [ "$(readlink "$LOCK.dead.$$")" != "$owner" ] && mv "$LOCK.dead.$$" "$LOCK.owner"
        rm -f "$LOCK.dead.$$"
      else
        wait_for_lock
      fi
    done
  fi
}

wait_for_lock() {
  [ "$(now)" -ge "$PATIENCE_END" ] && finish 22 restart-running "another restart holds the lock after ${BUSY_WAIT_SECONDS} s"
  sleep 1
}

release_lock() { [ "$(readlink "$LOCK.owner")" = "$$:$(started_at $$)" ] && rm -f "$LOCK.owner"; }

# ---- the agent's installation ----------------------------------------------------------------------------------------------------------------------------

# A value of the agent's configuration, written `:key: value` or `key: value`. $1: key, $2: default.
configured() {
  value=$(sed -n "s/^[[:space:]]*:\{0,1\}$1:[[:space:]]*//p" "$CONFIG" | head -n 1 | sed "s/[[:space:]]#.*//; s/[[:space:]]*\$//; s/^[\"']//; s/[\"']\$//")
  echo "${value:-$2}"
}

read_installation() {
  CONFIG=/etc/codedeploy-agent/conf/codedeployagent.yml
  [ -f "$CONFIG" ] || CONFIG=$AGENT/conf/codedeployagent.yml
  PROGRAM=$(configured program_name codedeploy-agent)
  PID_FILE=$(configured pid_dir $AGENT/state/.pid)/$PROGRAM.pid
  TRACKING=$(configured root_dir $AGENT/deployment-root)/$(configured ongoing_deployment_tracking ongoing-deployment)
  LOG=$(configured log_dir /var/log/aws/codedeploy-agent)/$PROGRAM.log
  VERSION=$(sed -n 's/^agent_version: *//p' $AGENT/.version | head -n 1)
  # v1 is a Ruby script, v2 a binary.
  GENERATION=2
  head -c 64 "$CLI" | grep -q '^#!.*ruby' && GENERATION=1
}

# The last errors of the agent's log, for the detail of a failure.
log_says() {
  errors=$(tail -n 400 "$LOG" | printable | grep -E '(ERROR|WARN|FATAL)' | tail -n 2 | cut -c 1-250 | tr '\n' ' ')
  [ -z "$errors" ] || printf '; log: %s' "$errors"
}

# ---- the agent's processes, as /proc has them ------------------------------------------------------------------------------------------------------------
# Not by the PID file (absent for a second after the start, stale after a crash), not by systemd's main process (0 for a generated unit, an application that
# remained in the control group otherwise).

title() { tr '\0' ' ' < "/proc/$1/cmdline"; }

# When a process started, in clock ticks since boot; empty when it is gone. With the id it tells a process from a later one with the same id.
started_at() { sed 's/^.*) //' "/proc/$1/stat" | cut -d ' ' -f 20; }

parent_of() { sed 's/^.*) //' "/proc/$1/stat" | cut -d ' ' -f 2; }

identity() { echo "$1:$(started_at "$1")"; }

same_process() { [ "$(started_at "${1%%:*}")" = "${1#*:}" ]; }

# Every process that has to do with the agent, cheaply: one grep over all of /proc.
agent_processes() { grep -lF -e codedeploy-agent -e "$PROGRAM: " /proc/[0-9]*/cmdline | cut -d / -f 3; }

children_of() {
  for pid in $(agent_processes); do
    [ "$(parent_of "$pid")" = "$1" ] && echo "$pid"
  done
}

# A v1 `codedeploy-agent stop` has a master's title while it waits, but neither the PID file nor children. Titles of v1 begin with the program's configured name.
is_master() {
  case $GENERATION:$(title "$1") in
    "1:$PROGRAM: master "*) [ "$(cat "$PID_FILE")" = "$1" ] || [ -n "$(children_of "$1")" ] ;;
    "2:$CLI start"* | "2:$CLI restart"*) true ;;
    *) false ;;
  esac
}

masters() {
  for pid in $(agent_processes); do
    is_master "$pid" && echo "$pid"
  done
}

# The process of master $1 that polls CodeDeploy, once it says that it is ready (v1: before that its title is `booting child`).
poller_of() {
  for pid in $(children_of "$1"); do
    case $GENERATION:$(title "$pid") in
      *"shutting down"*) ;;
      "1:$PROGRAM: "*"CommandPoller of master"* | "2:$CLI worker"*)
        echo "$pid"
        return
        ;;
    esac
  done
}

# Resident memory of a master and its poller, in KiB. Not of the control group: that holds the customer's applications too.
memory_of() {
  sum=0
  for pid in $1 $(poller_of "$1"); do
    kib=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$pid/status")
    sum=$((sum + ${kib:-0}))
  done
  echo "$sum"
}

all_memory() {
  total=0
  for master in $(masters); do
    total=$((total + $(memory_of "$master")))
  done
  echo "$total"
}

only() { [ $# -eq 1 ]; }

# ---- what must not be disturbed --------------------------------------------------------------------------------------------------------------------------

# A lifecycle event runs: the agent keeps a file for it. It ignores files older than a day, and so does this.
lifecycle_event() { find "$TRACKING" -type f -mmin -1440 | sed 's|.*/||' | head -n 1; }

# A package manager or the agent's own installer is at work: it would stop and start the agent by itself.
update_at_work() {
  grep -lxE 'dpkg|apt|apt-get|aptitude|rpm|yum|dnf|dnf5|microdnf|zypper' /proc/[0-9]*/comm && return
  grep -lE 'codedeploy-agent/bin/(install|update)' /proc/[0-9]*/cmdline
}

wait_until_quiet() {
  looks=0
  while [ "$looks" -lt "$QUIET_LOOKS" ]; do
    event=$(lifecycle_event)
    update=$(update_at_work)
    if [ -z "$event$update" ]; then
      looks=$((looks + 1))
    else
      looks=0
      if [ "$(now)" -ge "$PATIENCE_END" ]; then
        [ -n "$event" ] && finish 20 busy "a lifecycle event of $event still runs after ${BUSY_WAIT_SECONDS} s"
        finish 21 update-running "a package manager or installer still runs after ${BUSY_WAIT_SECONDS} s"
      fi
    fi
    [ "$looks" -lt "$QUIET_LOOKS" ] && sleep "$LOOK_EVERY"
  done
}

# ---- systemd -------------------------------------------------------------------------------------------------------------------------------------------

has_systemd() { [ -d /run/systemd/system ]; }

# A property of the unit. systemd 219 (Amazon Linux 2) has no `show --value`.
property() { bounded "$ASK_LIMIT" systemctl show -p "$1" "$UNIT" | sed -n "s/^$1=//p"; }

# A stop or restart that an earlier run asked for is still under way: the old agent drains.
is_queued() { has_systemd && bounded "$ASK_LIMIT" systemctl list-jobs --no-legend --no-pager | grep -q "[[:space:]]$UNIT\.service[[:space:]]"; }

# systemd would kill the whole control group at a stop: hooks, and applications that hooks started. With KillMode=process only the master is asked to end, and
# it drains. The PID file makes systemd wait for the new master, and know the right process although an application remains in the group.
put_drop_in() {
  mkdir -p "${DROP_IN%/*}"
  {
    echo '[Service]'
    echo 'KillMode=process'
    echo 'TimeoutStopSec=7200'
    [ "$GENERATION" = 1 ] && printf 'PIDFile=%s\nTimeoutStartSec=60\n' "$PID_FILE"
    true
  } > "$DROP_IN" || finish 12 preflight-failed "cannot write $DROP_IN; the agent was left alone"
  bounded "$ASK_LIMIT" systemctl daemon-reload
  [ "$(property KillMode)" = process ] || finish 12 preflight-failed "systemd does not take $DROP_IN; the agent was left alone"
}

# Removes what this run, or one that was killed, has put there. Not while a stop is queued, nor when systemd does not answer: it would bring back the kill of the
# whole group.
clear_drop_in() {
  [ -f "$DROP_IN" ] || return
  jobs=$(bounded "$ASK_LIMIT" systemctl list-jobs --no-legend --no-pager) || return
  echo "$jobs" | grep -q "[[:space:]]$UNIT\.service[[:space:]]" && return
  rm -f "$DROP_IN"
  rmdir "${DROP_IN%/*}"
  bounded "$ASK_LIMIT" systemctl daemon-reload
}

# The queued restart of a run before this one ends by itself when the lifecycle event ends; then everything is decided anew.
wait_for_queued_restart() {
  while is_queued; do
    [ "$(now)" -ge "$PATIENCE_END" ] && finish 34 draining "an earlier restart still waits for the agent to finish a lifecycle event"
    sleep "$LOOK_EVERY"
  done
}

# ---- the decisions -----------------------------------------------------------------------------------------------------------------------------------------

# The agent started at or after the deployment ended: its age when this script began is at most the time between the deployment's end and the sending, both by
# the function's clock. No two machines' clocks are compared. A late delivery only makes an agent look older than it is.
is_fresh() {
  [ -n "$TRIGGERED_AT" ] && [ -n "$SENT_AT" ] || return
  started=$(started_at "$1")
  [ -n "$started" ] && [ $((BEGAN_TICKS - started * 100 / CLOCK_TICKS)) -le $(((SENT_AT - TRIGGERED_AT) * 100)) ]
}

is_small() { [ "$MIN_MEMORY_MIB" -gt 0 ] && [ "$(memory_of "$1")" -lt $((MIN_MEMORY_MIB * 1024)) ]; }

# Exactly one master, its poller ready, both the same for $STABLE seconds. Sets MASTER; else PROOF_CODE, PROOF_RESULT and PROOF_DETAIL say what is wrong.
# `is-active` and the agent's own `status` are no proof: both are content with an agent whose poller never lives.
is_healthy() {
  end=$(($(now) + $(at_most "$READY_LIMIT")))
  while :; do
    MASTER=$(masters)
    # shellcheck disable=SC2086 # one word for each master
    if only $MASTER; then
      poller=$(poller_of "$MASTER")
      [ -n "$poller" ] && break
    fi
    if [ "$(now)" -ge "$end" ]; then
      unhealthy_start
      return 1
    fi
    sleep 1
  done
  master_before=$(identity "$MASTER")
  poller_before=$(identity "$poller")
  end=$(($(now) + STABLE))
  while [ "$(now)" -lt "$end" ]; do
    sleep 1
    same_process "$master_before" && same_process "$poller_before" && continue
    # A poller dies with its master: a moment later it shows which of them it was.
    sleep 1
    if same_process "$master_before"; then
      disproved 33 agent-unhealthy "the poller died after the start$(log_says)"
    else
      disproved 32 agent-down "the master died after the start$(log_says)"
    fi
    return 1
  done
  # shellcheck disable=SC2046 # one word for each master
  only $(masters) || {
    disproved 31 old-agent-survived "several masters run: $(masters | tr '\n' ' ')"
    return 1
  }
}

unhealthy_start() {
  # shellcheck disable=SC2086 # one word for each master
  set -- $MASTER
  case $# in
    0) disproved 32 agent-down "no master runs$(log_says)" ;;
    1) disproved 33 agent-unhealthy "the poller is not ready$(log_says)" ;;
    *) disproved 31 old-agent-survived "several masters run: $*" ;;
  esac
}

disproved() {
  PROOF_CODE=$1
  PROOF_RESULT=$2
  PROOF_DETAIL=$3
}

# Ends with the result $1 if the agent is healthy, else with what is wrong. A restart that failed is told only if no agent runs: systemd may have tried again.
finish_proven() {
  is_healthy && finish 0 "$1" ''
  [ "$PROOF_CODE" = 32 ] && [ -n "$RESTART_FAILED" ] && finish 30 service-manager-failed "$RESTART_FAILED"
  finish "$PROOF_CODE" "$PROOF_RESULT" "$PROOF_DETAIL"
}
RESTART_FAILED=''

# The agent's own commands believe the PID file. If it is wrong, `status` says that nothing runs, and `stop` ends whatever process has that number now.
correct_pid_file() {
  named=$(cat "$PID_FILE")
  if [ -z "$OLD" ]; then
    [ -z "$named" ] || is_master "$named" || rm -f "$PID_FILE"
  elif [ "$(echo "$OLD" | wc -l)" -eq 1 ] && [ "$named" != "$OLD" ]; then
    printf %s "$OLD" > "$PID_FILE"
  fi
}

# A new agent would not start: its configuration, interpreter or libraries are broken on disk, the disk is full, or its unit is masked. The old one still works: leave it.
check_that_it_can_start() {
  if has_systemd; then
    state=$(property LoadState)
    [ "$state" = masked ] && finish 12 preflight-failed "the unit $UNIT is masked; the agent was left alone"
    [ "$state" = loaded ] || finish 12 preflight-failed "systemd does not know the unit $UNIT ($state); the agent was left alone"
  elif ! [ -x "$INIT_SCRIPT" ]; then
    finish 12 preflight-failed "there is no systemd and no $INIT_SCRIPT; the agent was left alone"
  fi
  # On a full disk the agent's PID file would be empty; systemd, which waits for it, would take the start for a failure and end the agent.
  probe=${PID_FILE%/*}/.agent-restart-probe
  if [ -d "${PID_FILE%/*}" ]; then
    (echo probe > "$probe")
    [ -s "$probe" ] || { rm -f "$probe" && finish 12 preflight-failed "cannot write to ${PID_FILE%/*}; the agent was left alone"; }
    rm -f "$probe"
  fi
  [ -n "$OLD" ] || return
  said=$(bounded "$STATUS_LIMIT" "$CLI" status 2>&1)
  code=$?
  [ "$code" -eq 0 ] || finish 12 preflight-failed "the agent runs, but '$CLI status' ends with $code: $(echo "$said" | tail -n 2 | cut -c 1-300)"
}

# ---- the restart -------------------------------------------------------------------------------------------------------------------------------------------

is_in_unit() { grep -q "/$UNIT\.service" "/proc/$1/cgroup"; }

# An agent that systemd knows nothing of (the Debian package starts it so) is not stopped by a restart of the unit.
stop_outside_unit() {
  outside=''
  for master in $OLD; do is_in_unit "$master" || outside=$master; done
  [ -n "$OLD" ] && ! bounded "$ASK_LIMIT" systemctl is-active -q "$UNIT" && outside=$OLD
  [ -n "$outside" ] || return
  bounded "$STOP_LIMIT" "$CLI" stop
  code=$?
  # It goes on stopping by itself, and nothing would start it afterwards: so this waits as long as a restart may last.
  [ "$code" -eq 124 ] && old_is_gone && code=0
  stopped "$code"
}

# Waits until none of the old masters runs any more.
old_is_gone() {
  end=$(($(now) + $(at_most "$RESTART_LIMIT")))
  while [ -n "$(survivor)" ]; do
    [ "$(now)" -ge "$end" ] && return 1
    sleep 1
  done
}

# $1: the status of the agent's own stop, which refuses while a lifecycle event runs.
stopped() {
  [ "$1" -eq 0 ] && return
  [ -n "$(lifecycle_event)" ] && [ "$1" -ne 124 ] && finish 20 busy 'the agent refused to stop: a lifecycle event runs'
  [ "$1" -eq 124 ] && finish 34 draining 'the agent is still stopping, and nothing starts it afterwards: repeat when it has ended'
  finish 30 service-manager-failed "the agent's own stop ended with $1"
}

restart_with_systemd() {
  case $(property FragmentPath) in
    # A unit that systemd made from the init script has KillMode=process already.
    */generator*) [ "$(property KillMode)" = process ] || put_drop_in ;;
    *) put_drop_in ;;
  esac
  # After too many failed starts systemd refuses another one until this.
  bounded "$ASK_LIMIT" systemctl reset-failed "$UNIT"
  stop_outside_unit
  bounded "$RESTART_LIMIT" systemctl restart "$UNIT"
  code=$?
  [ "$code" -eq 124 ] && is_queued && finish 34 draining "the agent finishes a lifecycle event first; the queued restart follows by itself"
  refuse_survivors
  case $code in
    0 | 124) ;;
    *) RESTART_FAILED="systemctl restart ended with $code: $(bounded "$ASK_LIMIT" journalctl -u "$UNIT" -n 4 --no-pager -o cat | cut -c 1-150 | tr '\n' ' ')" ;;
  esac
}

restart_with_init_script() {
  if [ -n "$OLD" ]; then
    bounded "$RESTART_LIMIT" "$INIT_SCRIPT" stop
    stopped $?
    refuse_survivors
    sleep 1
  fi
  bounded "$READY_LIMIT" "$INIT_SCRIPT" start
  code=$?
  [ "$code" -eq 0 ] || RESTART_FAILED="$INIT_SCRIPT start ended with $code"
}

# The exit status of a restart is no proof: with a generated unit it is 0 although the agent refused to stop.
refuse_survivors() {
  old=$(survivor)
  [ -n "$old" ] || return
  [ -n "$(lifecycle_event)" ] && finish 20 busy 'the agent refused to stop: a lifecycle event runs'
  finish 31 old-agent-survived "master $old still runs: the restart did nothing to it"
}

# A master of before that still runs.
survivor() {
  for old in $OLD_IDENTITIES; do
    same_process "$old" && is_master "${old%%:*}" && echo "${old%%:*}"
  done | head -n 1
}

# ---- the story ---------------------------------------------------------------------------------------------------------------------------------------------

main() {
  CLOCK_TICKS=$(getconf CLK_TCK)
  CLOCK_TICKS=${CLOCK_TICKS:-100}
  read_installation
  [ "$(id -u)" = 0 ] || finish 11 not-root 'run it as root'
  [ -x "$CLI" ] || finish 10 not-installed "there is no $CLI"
  MEMORY_BEFORE=$(all_memory)

  take_lock
  wait_for_queued_restart
  # A drop-in that a dead run left is taken away when this run ends: until then it protects the host as well as a new one.
  decide_about_the_running_agent

  wait_until_quiet
  decide_about_the_running_agent
  correct_pid_file
  check_that_it_can_start
  UNTOUCHED=''
  if has_systemd; then restart_with_systemd; else restart_with_init_script; fi
  if [ -n "$OLD" ]; then finish_proven restarted; else finish_proven started; fi
}

# Notes which agent runs, and ends if it needs no restart. Done again after every wait, since another run, or an update, may have restarted it meanwhile.
decide_about_the_running_agent() {
  OLD=$(masters)
  # Between the end of its poller and the next one, a master without PID file cannot be told from a `stop`: look again while there may be one.
  looks=0
  while [ -z "$OLD" ] && [ "$looks" -lt 4 ] && has_a_masters_title; do
    sleep "$LOOK_EVERY"
    looks=$((looks + 1))
    OLD=$(masters)
  done
  OLD_IDENTITIES=''
  for master in $OLD; do OLD_IDENTITIES="$OLD_IDENTITIES $(identity "$master")"; done
  MEMORY_BEFORE=$(all_memory)
  # shellcheck disable=SC2086 # one word for each master
  only $OLD || return
  # A fresh agent that is not healthy is told, not restarted again: the restart did not help it.
  is_fresh "$OLD" && finish_proven already-restarted
  is_small "$OLD" && is_healthy && finish 0 below-threshold ''
}

has_a_masters_title() {
  for pid in $(agent_processes); do
    case $(title "$pid") in "$PROGRAM: master "*) return ;; esac
  done
  return 1
}

# Whatever ends this script, there is a line that is true.
# shellcheck disable=SC2317 # a trap calls it
interrupted() {
  [ -n "$UNTOUCHED" ] && finish 12 preflight-failed 'the script was ended before it did anything to the agent'
  is_queued && finish 34 draining 'the script was ended; the queued restart follows by itself'
  finish 33 agent-unhealthy 'the script was ended before it could prove that the agent is healthy'
}
trap interrupted EXIT HUP INT TERM

main
