# Restarts the CodeDeploy agent of this Windows host when that hurts nothing, proves that a new agent runs and stays, and says so in one line of JSON.
#
# Windows PowerShell 5.1, run as LocalSystem by Systems Manager Run Command. The contract (parameters, codes, the line) is in README.md beside this file; its
# table names the function that honours each fact about Windows. The steps are in Invoke-Restart, at the end; each function above it is named by what it
# does or proves. This script has been parsed, and never been run: no Windows was at hand.
#
# Two things decide how it goes about it. A service that is asked to stop first finishes what its agent does, for up to two hours, and nobody starts it
# afterwards: so a process that does is put in place before the stop is asked for. And no exit status proves anything: the service's process is looked at.

# Warnings and progress would be mixed into the output, of which Systems Manager keeps 2,500 bytes. Every error ends the run: none may be passed over.
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 1.0

# Seconds since boot, by the clock that nobody can set (the performance counter, which goes on while the machine sleeps). The time of day may be wrong, and
# may be set while this runs.
function Get-Now { [System.Diagnostics.Stopwatch]::GetTimestamp() / [double][System.Diagnostics.Stopwatch]::Frequency }
$Began = Get-Now

# What the function asks for, from the lines that the document puts before this script, or from the environment when it is run by hand. Without the first two
# no agent counts as fresh.
function Read-Number($Given, $Otherwise) { if ("$Given" -match '^[0-9]{1,10}$') { [long]$Given } else { $Otherwise } }
if (-not (Test-Path -Path 'variable:TriggeredAt')) { $TriggeredAt = $env:TRIGGERED_AT }
if (-not (Test-Path -Path 'variable:SentAt')) { $SentAt = $env:SENT_AT }
if (-not (Test-Path -Path 'variable:BusyWaitSeconds')) { $BusyWaitSeconds = $env:BUSY_WAIT_SECONDS }
if (-not (Test-Path -Path 'variable:MinMemoryMiB')) { $MinMemoryMiB = $env:MIN_MEMORY_MIB }
$TriggeredAt = Read-Number $TriggeredAt $null
$SentAt = Read-Number $SentAt $null
$BusyWaitSeconds = Read-Number $BusyWaitSeconds 120
$MinMemoryMiB = Read-Number $MinMemoryMiB 0

# Times in seconds. The tests can lower them; nothing else does.
function Get-Lowered($Limit, $Variable) { [Math]::Min($Limit, (Read-Number ([Environment]::GetEnvironmentVariable($Variable)) $Limit)) }
$StopLimit = Get-Lowered 150 'TEST_STOP_LIMIT'         # a stop: it ends with the current long poll, up to 80 s, and any event that came with it
$ReadyLimit = Get-Lowered 60 'TEST_READY_LIMIT'        # until the service runs again
$Stable = Get-Lowered 15 'TEST_STABLE'                 # the same process for this long; v2 ends by itself on a bad region, credentials or TLS
$FollowUpLimit = Get-Lowered 20 'TEST_FOLLOW_UP_LIMIT' # until the process that starts the service later has come up
$AskLimit = 40                                         # an order to the service control manager, which itself gives up after 30 s
$QueryLimit = 15                                       # a question to the management service
$Deadline = $BusyWaitSeconds + 300                     # of this script; Systems Manager would kill it 60 s later, without a line
$QuietLooks = 3                                        # the tracking directory is empty between two lifecycle events, so look again
$LookEvery = 2                                         # between two looks at anything
$PatienceEnd = $Began + $BusyWaitSeconds               # until when this run waits for other things on the host

$ServiceName = 'codedeployagent'
$LockName = 'Global\codedeploy-agent-restart'
$FollowUpName = 'Global\codedeploy-agent-restart-follow-up'
# Volatile: Windows drops it at the next boot.
$MarkKey = 'SOFTWARE\CodeDeployAgentRestart'
$AgentFolder = Join-Path -Path ([Environment]::GetFolderPath('CommonApplicationData')) -ChildPath 'Amazon\CodeDeploy'

# What this run has found and done so far.
$Version = ''
$MemoryBefore = 0
$MemoryAfter = 0
$Old = $null
$Survivors = ''
$Lock = $null
$FollowUpIsOurs = $false
$StopIsPending = $false
$Touched = $false

# Seconds that are left of this script, or the limit if that is less; at least 1.
function Get-AtMost($Limit) { [Math]::Max(1, [Math]::Min($Limit, $Began + $Deadline - (Get-Now))) }

# ---- the one line ----------------------------------------------------------------------------------------------------------------------------------------

# Text as the inside of a JSON string: ASCII without control characters, quotes or backslashes, so that nothing has to be escaped, and no escape is cut.
function ConvertTo-JsonText($Text, $Limit) {
  $clean = (("$Text" -creplace '[^\x21-\x7E]+', ' ').Replace('"', "'").Replace('\', '/')).Trim()
  $clean.Substring(0, [Math]::Min($clean.Length, $Limit))
}

# Prints the line and ends. It goes straight to standard output: the pipeline would break a long line where a console ends.
function Complete-Run([int]$Code, [string]$Result, [string]$Detail) {
  if ($Code -ne 34) { Stop-FollowUp }
  Exit-Lock
  $line = '{"agentRestart":1,"result":"' + $Result + '","code":' + $Code
  $line += ',"agentVersion":"' + (ConvertTo-JsonText $Version 60) + '"'
  $line += ',"memoryBeforeKiB":' + [long]$MemoryBefore + ',"memoryAfterKiB":' + [long]$MemoryAfter
  $line += ',"seconds":' + [long][Math]::Floor((Get-Now) - $Began) + ',"detail":"' + (ConvertTo-JsonText $Detail 600) + '"}'
  [Console]::Out.WriteLine($line)
  exit $Code
}

# Whatever ends this script, there is a line that is true.
function Complete-AfterError($Problem) {
  $said = $Problem.Exception.GetBaseException().Message + ' (line ' + $Problem.InvocationInfo.ScriptLineNumber + ')'
  if (-not $Touched) { Complete-Run 12 'preflight-failed' "the agent was left alone: $said" }
  # The follow-up is left to start the service, should it be stopped.
  $script:FollowUpIsOurs = $false
  if ($StopIsPending) { Complete-Run 34 'draining' "the agent was asked to stop, and the service starts when it has; the script ended early: $said" }
  $state = 'unknown'
  try { $state = (Get-AgentService).State } catch { $state = 'unknown' }
  if ($state -eq 'Stopped') { Complete-Run 32 'agent-down' "the service is stopped; the script ended early: $said" }
  Complete-Run 33 'agent-unhealthy' "the script ended before it could prove that the agent is healthy; the service is ${state}: $said"
}

# ---- the lock: one run at a time on this host --------------------------------------------------------------------------------------------------------------

# Windows frees the mutex of a run that was killed, and says so with an exception: it is ours then.
function Enter-Lock {
  do {
    try {
      if ($null -eq $Lock) { $script:Lock = New-Object -TypeName System.Threading.Mutex -ArgumentList $false, $LockName }
      if ($Lock.WaitOne(1000)) { return }
    }
    catch {
      $cause = $_.Exception.GetBaseException()
      if ($cause -is [System.Threading.AbandonedMutexException]) { return }
      # Another run, under another account, holds a mutex that this account may not open.
      if ($cause -isnot [System.UnauthorizedAccessException]) { throw }
      Start-Sleep -Seconds 1
    }
  } while ((Get-Now) -lt $PatienceEnd)
  Complete-Run 22 'restart-running' "another restart holds the lock after $BusyWaitSeconds s"
}

# Only its owner can release it, which this may not be; the end of the process frees it in any case.
function Exit-Lock { try { $Lock.ReleaseMutex() } catch { return } }

# ---- the agent's installation ------------------------------------------------------------------------------------------------------------------------------

function Assert-Administrator {
  $me = New-Object -TypeName System.Security.Principal.WindowsPrincipal -ArgumentList ([System.Security.Principal.WindowsIdentity]::GetCurrent())
  if (-not $me.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)) { Complete-Run 11 'not-root' 'run it as an administrator' }
}

function Assert-Installed {
  if ($null -eq (Get-AgentService)) { Complete-Run 10 'not-installed' "there is no service $ServiceName" }
}

# A value of the agent's configuration, written `:key: value` or `key: value`.
function Get-Configured($Key, $Otherwise) {
  $file = Join-Path -Path $AgentFolder -ChildPath 'conf.yml'
  if (-not [System.IO.File]::Exists($file)) { return $Otherwise }
  foreach ($line in [System.IO.File]::ReadAllLines($file)) {
    if ($line -cmatch ('^\s*:?' + $Key + ':\s*(.*)$')) {
      $value = ($Matches[1] -replace '\s+#.*$', '').Trim().Trim("'", '"')
      if ($value -ne '') { return $value }
    }
  }
  $Otherwise
}

function Read-Installation {
  $root = Get-Configured 'root_dir' $AgentFolder
  $script:Tracking = Join-Path -Path $root -ChildPath (Get-Configured 'ongoing_deployment_tracking' 'ongoing-deployment')
  $script:LogFolder = Get-Configured 'log_dir' (Join-Path -Path $AgentFolder -ChildPath 'log')
  $file = Join-Path -Path $AgentFolder -ChildPath '.version'
  if ([System.IO.File]::Exists($file) -and [System.IO.File]::ReadAllText($file) -match 'agent_version:\s*(\S+)') { $script:Version = $Matches[1] }
}

# The last errors of the agent's log, for the detail of a failure: the newest of v1's log, v2's log and v2's log of its start.
function Get-LastErrors {
  try {
    $logs = foreach ($name in 'codedeploy-agent-log.txt', 'codedeploy-agent.log', 'service-bootstrap.log') {
      $file = New-Object -TypeName System.IO.FileInfo -ArgumentList (Join-Path -Path $LogFolder -ChildPath $name)
      if ($file.Exists) { $file }
    }
    $newest = $logs | Sort-Object -Property LastWriteTimeUtc | Select-Object -Last 1
    $errors = Get-Content -LiteralPath $newest.FullName -Tail 400 | Where-Object { $_ -cmatch 'ERROR|WARN|FATAL' } | Select-Object -Last 2
    ($errors | ForEach-Object { $_.Substring(0, [Math]::Min($_.Length, 250)) }) -join ' '
  }
  catch { 'the log cannot be read' }
}

# ---- the agent, as Windows has it --------------------------------------------------------------------------------------------------------------------------

# Asks up to three times: the management service is known to fail a single question under load.
function Read-Cim($Class, $Filter) {
  for ($try = 1; $true; $try++) {
    try { return Get-CimInstance -ClassName $Class -Filter $Filter -OperationTimeoutSec ([int](Get-AtMost $QueryLimit)) }
    catch { if ($try -ge 3) { throw } }
    Start-Sleep -Seconds $LookEvery
  }
}

function Get-AgentService { Read-Cim 'Win32_Service' "Name='$ServiceName'" }
function Get-Processes { Read-Cim 'Win32_Process' 'ProcessId >= 0' }

# A process id together with the moment of its creation: Windows gives an id to another process soon. The moment is only compared with itself.
function Get-Identity($Process) {
  if ($null -eq $Process.CreationDate) { return '' + $Process.ProcessId }
  '' + $Process.ProcessId + '/' + $Process.CreationDate.ToFileTimeUtc()
}

# The service's process and those it started that are the agent too: v1 is packed Ruby, so there may be a ruby.exe below it. Hooks are below it as well while
# they run, and are not the agent. An application that a hook left behind hangs below a process that is gone, and so is not found.
function Get-AgentProcesses($ServiceProcessId) {
  if ($ServiceProcessId -eq 0) { return }
  $all = @(Get-Processes)
  $found = @($all | Where-Object { $_.ProcessId -eq $ServiceProcessId })
  if ($found.Count -eq 0) { return }
  $names = $found[0].Name, 'ruby.exe'
  for ($next = 0; $next -lt $found.Count; $next++) {
    $parent = $found[$next]
    # A child that is older than its parent is the child of an earlier process with the same id.
    $found += @($all | Where-Object { $_.ParentProcessId -eq $parent.ProcessId -and $_.ProcessId -ne $parent.ProcessId -and
        $names -contains $_.Name -and $_.CreationDate -ge $parent.CreationDate })
  }
  $found
}

# What runs at the moment: the service's state, the identity of its process, of all processes of the agent, and their working sets.
function Get-Agent {
  $service = Get-AgentService
  $agent = @{ State = 'gone'; ProcessId = 0; Identity = ''; Processes = @(); MemoryKiB = 0 }
  if ($null -eq $service) { return $agent }
  $agent.State = $service.State
  $agent.ProcessId = $service.ProcessId
  foreach ($process in @(Get-AgentProcesses $service.ProcessId)) {
    $agent.Processes += Get-Identity $process
    $agent.MemoryKiB += [long]($process.WorkingSetSize / 1024)
    if ($process.ProcessId -eq $service.ProcessId) { $agent.Identity = Get-Identity $process }
  }
  $agent
}

# ---- what must not be disturbed ----------------------------------------------------------------------------------------------------------------------------

# A lifecycle event runs: the agent keeps a file for it. It ignores files older than a day, by the same clock of the same host, and so does this. A file that
# vanishes in between counts as written in 1601.
function Get-LifecycleEvent {
  if (-not [System.IO.Directory]::Exists($Tracking)) { return '' }
  foreach ($file in [System.IO.Directory]::GetFiles($Tracking, '*', [System.IO.SearchOption]::AllDirectories)) {
    if ([System.IO.File]::GetLastWriteTimeUtc($file) -gt [DateTime]::UtcNow.AddDays(-1)) { return [System.IO.Path]::GetFileName($file) }
  }
  ''
}

# An installation is being carried out. Not by the processes: the Windows Installer's own msiexec.exe stays for minutes after its work. Windows Installer
# holds this mutex while it executes an installation, and only then (Microsoft, "_MSIExecute Mutex").
function Test-InstallationInProgress {
  $mutex = $null
  try {
    $mutex = [System.Threading.Mutex]::OpenExisting('Global\_MSIExecute')
    if (-not $mutex.WaitOne(0)) { return $true }
  }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.Threading.WaitHandleCannotBeOpenedException]) { return $false }
    # It exists and may not be opened; anything else but an owner that died is no answer at all.
    if ($cause -is [System.UnauthorizedAccessException]) { return $true }
    if ($cause -isnot [System.Threading.AbandonedMutexException]) { throw }
  }
  # It was free and is now ours: it must be given back at once.
  $mutex.ReleaseMutex()
  $mutex.Dispose()
  $false
}

# The agent is being installed or updated, in the part of it that is not executed by Windows Installer yet, or any more. Windows Installer's idle service
# has the command line `msiexec.exe /V`, without a package.
function Test-AgentUpdateInProgress {
  $installers = @(Read-Cim 'Win32_Process' "Name='msiexec.exe' OR Name LIKE 'codedeploy-agent-updater%'" |
      Where-Object { $_.Name -ne 'msiexec.exe' -or "$($_.CommandLine)" -match 'codedeploy' })
  $installers.Count -gt 0
}

function Test-UpdateInProgress { (Test-InstallationInProgress) -or (Test-AgentUpdateInProgress) }

function Wait-UntilQuiet {
  $looks = 0
  while ($looks -lt $QuietLooks) {
    $lifecycleEvent = Get-LifecycleEvent
    $update = Test-UpdateInProgress
    if ($lifecycleEvent -eq '' -and -not $update) { $looks++ }
    else {
      $looks = 0
      if ((Get-Now) -ge $PatienceEnd) {
        if ($lifecycleEvent -ne '') { Complete-Run 20 'busy' "a lifecycle event of $lifecycleEvent still runs after $BusyWaitSeconds s" }
        Complete-Run 21 'update-running' "an installation still runs after $BusyWaitSeconds s"
      }
    }
    if ($looks -lt $QuietLooks) { Start-Sleep -Seconds $LookEvery }
  }
}

# ---- the follow-up: who starts the service after a stop that outlasts this script ----------------------------------------------------------------------------

# Windows knows a stop, but no restart: an agent that drains for longer than this script waits, or than this script lives, would stay stopped, and the rest
# of the running deployment would fail on it. So a process of its own waits for the stop and starts the service. It starts nothing before the service has
# been stopped for 10 s, since this script does so earlier; it ends when another agent runs, when it is told to, and after the two hours that an agent drains
# at most. Its event is there as long as it is. It ends at once if the run that wants it is gone already, and so is its lock.
#
# It is handed over as one line between double quotes, so it holds neither comments nor double quotes, and each statement ends with a semicolon.
$FollowUp = {
  param($OldProcessId);
  $null = [System.Threading.Mutex]::OpenExisting('Global\codedeploy-agent-restart');
  $cancelled = New-Object System.Threading.EventWaitHandle($false, 'ManualReset', 'Global\codedeploy-agent-restart-follow-up');
  $stopped = 0;
  for ($look = 0; $look -lt 3900 -and $stopped -lt 5; $look++) {
    if ($cancelled.WaitOne(2000)) { exit 0 };
    $service = Get-CimInstance -ClassName Win32_Service -Filter 'Name=''codedeployagent''';
    if ($service.State -eq 'Stopped') { $stopped++ } else { $stopped = 0 };
    if ($service.ProcessId -gt 0 -and $service.ProcessId -ne $OldProcessId) { exit 0 };
  };
  if ($stopped -ge 5) { & ($env:SystemRoot + '\System32\sc.exe') start codedeployagent };
}

# A follow-up is at work. Not to be allowed to open its event is a proof of it, too.
function Test-FollowUp {
  try {
    # An open handle would keep the event when its process has ended.
    [System.Threading.EventWaitHandle]::OpenExisting($FollowUpName).Dispose()
    $true
  }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.Threading.WaitHandleCannotBeOpenedException]) { return $false }
    if ($cause -isnot [System.UnauthorizedAccessException]) { throw }
    $true
  }
}

# Started through the shell (as Start-Process does without redirection), it inherits no handle: Systems Manager would wait for the end of one that holds its
# output. When Systems Manager kills this script, it kills this process alone.
function Start-FollowUp {
  $text = $FollowUp.ToString() -replace '\s*\r?\n\s*', ' '
  $arguments = '-NoProfile -NonInteractive -Command "& {' + $text + '} ' + $Old.ProcessId + '"'
  Start-Process -FilePath (Join-Path -Path $PSHOME -ChildPath 'powershell.exe') -ArgumentList $arguments -WindowStyle Hidden
  $script:FollowUpIsOurs = $true
  $end = (Get-Now) + (Get-AtMost $FollowUpLimit)
  while (-not (Test-FollowUp)) {
    if ((Get-Now) -ge $end) {
      Complete-Run 12 'preflight-failed' 'the agent was left alone: the process that would start it after a long stop does not come up'
    }
    Start-Sleep -Milliseconds 500
  }
}

# Only our own: that of an earlier run still has its service to start.
function Stop-FollowUp {
  if (-not $FollowUpIsOurs) { return }
  try { $null = [System.Threading.EventWaitHandle]::OpenExisting($FollowUpName).Set() } catch { return }
}

# An earlier run's stop, or anybody's, is still under way. The state alone does not tell: v2 stays Running until it has drained.
function Wait-ForPendingStop {
  while ((Test-FollowUp) -or (Get-AgentService).State -eq 'Stop Pending') {
    if ((Get-Now) -ge $PatienceEnd) { Complete-Run 34 'draining' 'an earlier stop still waits for the agent to finish a lifecycle event' }
    Start-Sleep -Seconds $LookEvery
  }
}

# ---- the decisions -----------------------------------------------------------------------------------------------------------------------------------------

# Windows keeps of a process only the time of day at which it was created, and that clock is set at boot and by whoever likes to. So the age is not computed
# from it. Two upper bounds are, by the clock that nobody can set: nothing is older than the boot, and an agent that an earlier run of this script started
# is no older than the mark which that run left. Any other agent counts as old: a needless restart, never a stale agent called fresh.
function Get-GreatestAge($Agent) {
  $age = $Began
  $marked = Get-StartMark $Agent.Identity
  if ($null -ne $marked) { $age = [Math]::Min($age, $Began - $marked) }
  $age
}

# The agent started at or after the deployment ended: its age when this script began is at most the time between the deployment's end and the sending, both by
# the function's clock. No two machines' clocks are compared. A late delivery only makes an agent look older than it is.
function Test-Fresh($Agent) {
  if ($null -eq $TriggeredAt -or $null -eq $SentAt) { return $false }
  (Get-GreatestAge $Agent) -le ($SentAt - $TriggeredAt)
}

# When this process was started by a run of this script, in seconds since boot; nothing when it was not, or when that cannot be known.
function Get-StartMark($Identity) {
  try {
    $key = [Microsoft.Win32.Registry]::LocalMachine.OpenSubKey($MarkKey)
    if ($null -eq $key -or $key.GetValue('Process') -cne $Identity) { return $null }
    [long]$key.GetValue('Ticks') / [double][System.Diagnostics.Stopwatch]::Frequency
  }
  catch { $null }
}

# Without the mark the next run would restart the agent once more, so a failure here is none of the restart.
function Set-StartMark($Identity, $Ticks) {
  try {
    $key = [Microsoft.Win32.Registry]::LocalMachine.CreateSubKey($MarkKey, [Microsoft.Win32.RegistryKeyPermissionCheck]::Default,
      [Microsoft.Win32.RegistryOptions]::Volatile)
    $key.SetValue('Ticks', "$Ticks")
    $key.SetValue('Process', $Identity)
    $key.Close()
  }
  catch { return }
}

function Test-Small($Agent) { $MinMemoryMiB -gt 0 -and $Agent.MemoryKiB -lt $MinMemoryMiB * 1024 }

# The service runs, in a process other than $Except, and the process stays the same for $Stable seconds. Gives nothing if so, else what is wrong.
function Get-Disproof($Except) {
  $end = (Get-Now) + (Get-AtMost $ReadyLimit)
  $agent = Get-Agent
  while ($agent.State -ne 'Running' -or $agent.Identity -eq '' -or $agent.Identity -ceq $Except) {
    if ((Get-Now) -ge $end) { return Get-UnreadyDisproof $agent $Except }
    Start-Sleep -Seconds 1
    $agent = Get-Agent
  }
  $first = $agent.Identity
  $end = (Get-Now) + $Stable
  while ((Get-Now) -lt $end) {
    Start-Sleep -Seconds 1
    $agent = Get-Agent
    if ($agent.State -eq 'Stopped' -or $agent.State -eq 'gone') {
      return New-Disproof 32 'agent-down' "the agent ended after the start; log: $(Get-LastErrors)"
    }
    if ($agent.State -ne 'Running' -or $agent.Identity -cne $first) {
      return New-Disproof 33 'agent-unhealthy' "the agent does not stay (the service is $($agent.State)); log: $(Get-LastErrors)"
    }
  }
}

function Get-UnreadyDisproof($Agent, $Except) {
  if ($Agent.State -eq 'Running' -and $Agent.Identity -ceq $Except) {
    return New-Disproof 31 'old-agent-survived' "process $($Agent.ProcessId) still runs: the restart did nothing to it"
  }
  if ($Agent.State -eq 'Stopped' -or $Agent.State -eq 'gone') {
    return New-Disproof 32 'agent-down' "the service does not run; log: $(Get-LastErrors)"
  }
  New-Disproof 33 'agent-unhealthy' "the service is $($Agent.State); log: $(Get-LastErrors)"
}

function New-Disproof($Code, $Result, $Detail) { @{ Code = $Code; Result = $Result; Detail = $Detail } }

# Ends with the result if the agent is healthy, else with what is wrong.
function Complete-Proven($Result, $Disproof) {
  $script:MemoryAfter = (Get-Agent).MemoryKiB
  if ($null -ne $Disproof) { Complete-Run $Disproof.Code $Disproof.Result $Disproof.Detail }
  Complete-Run 0 $Result ''
}

# Notes which agent runs, and ends if it needs no restart. Done again after every wait, since another run, or an update, may have restarted it meanwhile.
function Resolve-RunningAgent {
  $agent = Get-Agent
  $script:Old = $null
  if ($agent.Identity -ne '') { $script:Old = $agent }
  $script:MemoryBefore = $agent.MemoryKiB
  if ($null -eq $Old) { return }
  # A fresh agent that is not healthy is told, not restarted again: the restart did not help it.
  if (Test-Fresh $Old) { Complete-Proven 'already-restarted' (Get-Disproof '') }
  if ((Test-Small $Old) -and $null -eq (Get-Disproof '')) { Complete-Proven 'below-threshold' $null }
}

# A new agent would not start: its service is disabled, or its executable is gone. The old one still works: leave it. There is no more to ask on Windows: v1
# has no command line for its service, and v2's refuses `status` there.
function Assert-StartIsPossible {
  $service = Get-AgentService
  if ($null -eq $service) { Complete-Run 12 'preflight-failed' "the service $ServiceName has gone" }
  if ($service.StartMode -eq 'Disabled') { Complete-Run 12 'preflight-failed' "the service $ServiceName is disabled; the agent was left alone" }
  if ("$($service.PathName)" -match '^\s*(?:"([^"]+)"|(\S.*?\.exe)(?:\s|$))') {
    $executable = [Environment]::ExpandEnvironmentVariables("$($Matches[1])$($Matches[2])")
    if ([System.IO.Path]::IsPathRooted($executable) -and -not [System.IO.File]::Exists($executable)) {
      Complete-Run 12 'preflight-failed' "there is no $executable; the agent was left alone"
    }
  }
}

# ---- the restart -------------------------------------------------------------------------------------------------------------------------------------------

# Runs sc.exe, which only hands the order over, unlike the cmdlets, which wait and give up after some seconds (v2 stays Running until it has drained). Its
# exit code is Windows' own error code.
function Invoke-ServiceControl($Verb) {
  $start = New-Object -TypeName System.Diagnostics.ProcessStartInfo
  $start.FileName = Join-Path -Path $env:SystemRoot -ChildPath 'System32\sc.exe'
  $start.Arguments = "$Verb $ServiceName"
  $start.UseShellExecute = $false
  $start.CreateNoWindow = $true
  $start.RedirectStandardOutput = $true
  $start.RedirectStandardError = $true
  $process = [System.Diagnostics.Process]::Start($start)
  # ERROR_SERVICE_REQUEST_TIMEOUT, as the service control manager itself would say.
  if (-not $process.WaitForExit([int](1000 * (Get-AtMost $AskLimit)))) { return 1053 }
  $process.ExitCode
}

# The processes of the old agent that are still there.
function Get-Survivors {
  $alive = @(Get-Processes | ForEach-Object { Get-Identity $_ })
  @($Old.Processes | Where-Object { $alive -ccontains $_ })
}

# Asks the service to stop and waits for it, and for the end of its processes. The agent is never ended by force: it finishes what it does.
function Stop-AgentService {
  $script:Touched = $true
  $script:StopIsPending = $true
  $end = (Get-Now) + (Get-AtMost $StopLimit)
  $code = Invoke-ServiceControl 'stop'
  while (($state = (Get-AgentService).State) -ne 'Stopped') {
    # 1061: it cannot be told now, because it is starting, or because it is stopping already.
    if ($code -eq 1061 -and $state -ne 'Stop Pending') { $code = Invoke-ServiceControl 'stop' }
    # 0: it will stop. 1053: no answer in time. 1062: it is stopped already.
    $refused = @(0, 1053, 1061, 1062) -notcontains $code
    $late = (Get-Now) -ge $end
    if ($refused -or $late) { $script:MemoryAfter = (Get-Agent).MemoryKiB }
    if ($refused -or ($late -and $code -eq 1061 -and $state -ne 'Stop Pending')) {
      Complete-Run 31 'old-agent-survived' "the service refused to stop: sc.exe ended with $code"
    }
    if ($late) { Complete-Run 34 'draining' "the agent finishes a lifecycle event first (the service is $state); it is started when it has stopped" }
    Start-Sleep -Seconds 1
  }
  $script:StopIsPending = $false
  # A stopped service may leave a process for some seconds. One that stays would poll beside the new agent: that is told, but the host needs an agent.
  while (@(Get-Survivors).Count -gt 0 -and (Get-Now) -lt $end) { Start-Sleep -Seconds 1 }
  $script:Survivors = @(Get-Survivors) -join ' '
}

# The exit code of the start proves nothing, so what runs is looked at in any case; it only tells why nothing does.
function Start-AgentService {
  $script:Touched = $true
  $ticks = [System.Diagnostics.Stopwatch]::GetTimestamp()
  $code = Invoke-ServiceControl 'start'
  # 1056: it runs already; the follow-up was faster.
  if (@(0, 1053, 1056) -notcontains $code -and (Get-AgentService).State -eq 'Stopped') {
    Complete-Run 30 'service-manager-failed' "sc.exe start ended with ${code}; log: $(Get-LastErrors)"
  }
  $ticks
}

# ---- the story ---------------------------------------------------------------------------------------------------------------------------------------------

function Invoke-Restart {
  Assert-Administrator
  Assert-Installed
  Read-Installation

  Enter-Lock
  Wait-ForPendingStop
  Resolve-RunningAgent

  Wait-UntilQuiet
  Resolve-RunningAgent
  Assert-StartIsPossible
  $result = 'started'
  $oldIdentity = ''
  if ($null -ne $Old) {
    $result = 'restarted'
    $oldIdentity = $Old.Identity
    Start-FollowUp
    Stop-AgentService
  }
  $ticks = Start-AgentService

  $disproof = Get-Disproof $oldIdentity
  if ($null -eq $disproof -and $Survivors -ne '') {
    $disproof = New-Disproof 31 'old-agent-survived' "a new agent runs, and beside it still the old one's processes $Survivors"
  }
  if ($null -eq $disproof) { Set-StartMark (Get-Agent).Identity $ticks }
  Complete-Proven $result $disproof
}

# What a step may leave in the pipeline is no part of the output.
try { $null = Invoke-Restart } catch { $null = Complete-AfterError $_ }
