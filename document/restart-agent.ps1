# Restarts the CodeDeploy agent of this Windows host when that hurts nothing, proves that a new agent runs and polls, and says so in one line of JSON.
#
# Windows PowerShell 4 and 5.1, run as LocalSystem by Systems Manager Run Command. The contract (parameters, codes, the line) is in README.md beside this file;
# its table names the function that honours each fact about Windows. Read it from its end: the steps are in Invoke-Restart; each function above it is named by
# what it does or proves. All that touches Windows stands in the first part; tests/windows puts a simulated Windows in its place, and runs the rest.
#
# Two things decide how it goes about it. A service that is asked to stop first finishes what its agent does, for up to two hours, and nobody starts it
# afterwards: so a process that does, the follow-up, is put in place before the stop is asked for. And no exit status proves anything: what counts is the
# service's process, and what that process writes into its log about polling.

# Warnings and progress would be mixed into the output, of which Systems Manager keeps 2,500 bytes. Every error ends the run: none may be passed over.
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2.0

$ServiceName = 'codedeployagent'
$LockName = 'Global\codedeploy-agent-restart'
# Exists as long as a follow-up lives; set, it tells it to end.
$FollowUpName = 'Global\codedeploy-agent-restart-follow-up'
# Volatile: Windows drops it at the next boot.
$MarkKey = 'SOFTWARE\CodeDeployAgentRestart'

# ---- Windows: all that touches it ------------------------------------------------------------------------------------------------------------------------
#
# Each function may throw, unless it says that it does not.

# Handles by name or process id. Windows drops a named object with its last handle, and gives a process's id to no other while a handle of it is open.
$Handles = @{}

# Seconds since boot, by the clock that nobody can set (the performance counter, which goes on while the machine sleeps).
function Get-Now { [System.Diagnostics.Stopwatch]::GetTimestamp() / [double][System.Diagnostics.Stopwatch]::Frequency }

# The time of day, UTC. It may be wrong, and may be set while this runs: good for ages of files and log lines, which were stamped by it.
function Get-TimeOfDay { [DateTime]::UtcNow }

function Wait-Seconds($Seconds) { Start-Sleep -Milliseconds ([int](1000 * $Seconds)) }

# Of the process that this is.
function Get-OwnId { $PID }

function Get-Folder($Name) { [Environment]::GetFolderPath($Name) }

function Test-Administrator {
  $me = New-Object -TypeName System.Security.Principal.WindowsPrincipal -ArgumentList ([System.Security.Principal.WindowsIdentity]::GetCurrent())
  $me.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
}

# The service with its State ('Running', 'Stop Pending', ...; never localised), ProcessId, StartMode and PathName; nothing when there is none.
function Get-ServiceRecord {
  Get-CimInstance -ClassName 'Win32_Service' -Filter "Name='$ServiceName'" -Property 'Name', 'State', 'ProcessId', 'StartMode', 'PathName' `
    -OperationTimeoutSec ([int](Get-AtMost $QueryLimit))
}

function Get-ProcessRecords {
  Get-CimInstance -ClassName 'Win32_Process' -Property 'Name', 'ProcessId', 'ParentProcessId', 'CreationDate', 'WorkingSetSize', 'CommandLine' `
    -OperationTimeoutSec ([int](Get-AtMost $QueryLimit))
}

# The service's state ('Running', 'StopPending', ...), asked of the service control manager itself; empty when there is no such service.
function Get-ServiceState {
  $service = Get-Service -Name $ServiceName -ErrorAction SilentlyContinue
  if ($null -ne $service) { return "$($service.Status)" }
  ''
}

# Runs sc.exe, which only hands the order over, unlike the cmdlets, which wait and give up after some seconds (v2 stays Running until it has drained). Gives
# Windows' own error code.
function Send-ServiceOrder($Verb) {
  $start = New-Object -TypeName System.Diagnostics.ProcessStartInfo
  $start.FileName = Join-Path -Path (Get-Folder 'System') -ChildPath 'sc.exe'
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

# A process of this number lives, and is the same as at the first question. An administrator that is not LocalSystem may get no handle of it (PowerShell gives nothing
# for a property that throws): then it is only known that there is one. Does not throw.
function Test-Alive($Id) {
  try {
    if (-not $Handles.ContainsKey("$Id")) {
      $process = [System.Diagnostics.Process]::GetProcessById($Id)
      if ($null -eq $process.Handle) { return $true }
      $Handles["$Id"] = $process
    }
    -not $Handles["$Id"].HasExited
  }
  catch { $false }
}

# Starts this file once more, hidden, as `follow-up RUN OLD GENERATION SECONDS`. Through the shell (as Start-Process does without redirection) it inherits no handle: Systems
# Manager would wait for the end of one that holds its output. When Systems Manager kills this script, it kills this process alone.
function Start-FollowUpProcess($Arguments) {
  Start-Process -FilePath (Join-Path -Path $PSHOME -ChildPath 'powershell.exe') -WindowStyle Hidden `
    -ArgumentList "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$PSCommandPath`" follow-up $Arguments"
}

# The mutex is ours now, if nobody else has it. Windows frees that of a process that was killed, and says so with an exception. Another account's, which may not
# be opened, is somebody else's.
function Enter-Mutex($Name) {
  try {
    if (-not $Handles.ContainsKey($Name)) { $Handles[$Name] = New-Object -TypeName System.Threading.Mutex -ArgumentList $false, $Name }
    $Handles[$Name].WaitOne(0)
  }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.Threading.AbandonedMutexException]) { return $true }
    if ($cause -isnot [System.UnauthorizedAccessException]) { throw }
    $false
  }
}

# Only its owner can release it, which this may not be; the end of the process frees it in any case. Does not throw.
function Exit-Mutex($Name) { try { $Handles[$Name].ReleaseMutex() } catch { return } }

# Somebody holds the mutex, which this does not create.
function Test-MutexHeld($Name) {
  try {
    $mutex = [System.Threading.Mutex]::OpenExisting($Name)
    if (-not $mutex.WaitOne(0)) {
      $mutex.Dispose()
      return $true
    }
  }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.Threading.WaitHandleCannotBeOpenedException]) { return $false }
    if ($cause -is [System.UnauthorizedAccessException]) { return $true }
    if ($cause -isnot [System.Threading.AbandonedMutexException]) { throw }
  }
  # It was free and is now ours: it must be given back at once.
  $mutex.ReleaseMutex()
  $mutex.Dispose()
  $false
}

# Makes the event, which exists as long as this process.
function New-Signal($Name) { $Handles[$Name] = New-Object -TypeName System.Threading.EventWaitHandle -ArgumentList $false, 'ManualReset', $Name }

# The event exists. Not to be allowed to open it is a proof of it, too. An open handle would keep the event when its process has ended.
function Test-Signal($Name) {
  try { [System.Threading.EventWaitHandle]::OpenExisting($Name).Dispose() }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.Threading.WaitHandleCannotBeOpenedException]) { return $false }
    if ($cause -isnot [System.UnauthorizedAccessException]) { throw }
  }
  $true
}

function Set-Signal($Name) {
  $signal = [System.Threading.EventWaitHandle]::OpenExisting($Name)
  $null = $signal.Set()
  # As above.
  $signal.Dispose()
}

# Our own event is set.
function Test-SignalSet($Name) { $Handles[$Name].WaitOne(0) }

# What an earlier run has noted since the boot; nothing when it has not, or when that cannot be read. Does not throw.
function Get-Mark($Name) {
  try { [Microsoft.Win32.Registry]::LocalMachine.OpenSubKey($MarkKey).GetValue($Name) } catch { $null }
}

# Does not throw: what cannot be noted is done once more by the next run.
function Set-Mark($Name, $Value) {
  try {
    $key = [Microsoft.Win32.Registry]::LocalMachine.CreateSubKey($MarkKey, [Microsoft.Win32.RegistryKeyPermissionCheck]::Default,
      [Microsoft.Win32.RegistryOptions]::Volatile)
    $key.SetValue($Name, "$Value")
    $key.Close()
  }
  catch { return }
}

# The files below a folder, each with Name and Written (UTC); none when there is no such folder. Directory.Exists would say so of one that cannot be read, too.
function Get-FilesBelow($Folder) {
  try { $paths = [System.IO.Directory]::GetFiles($Folder, '*', [System.IO.SearchOption]::AllDirectories) }
  catch {
    if ($_.Exception.GetBaseException() -is [System.IO.DirectoryNotFoundException]) { return }
    throw
  }
  foreach ($path in $paths) {
    @{ Name = [System.IO.Path]::GetFileName($path); Written = [System.IO.File]::GetLastWriteTimeUtc($path) }
  }
}

# The Lines at the end of a file that somebody else writes; nothing when there is no such file.
function Read-Tail($Path) {
  if (-not [System.IO.File]::Exists($Path)) { return }
  $stream = New-Object -TypeName System.IO.FileStream -ArgumentList $Path, 'Open', 'Read', 'ReadWrite, Delete'
  try {
    $null = $stream.Seek(-[Math]::Min($stream.Length, 256KB), [System.IO.SeekOrigin]::End)
    $text = (New-Object -TypeName System.IO.StreamReader -ArgumentList $stream).ReadToEnd()
  }
  finally { $stream.Dispose() }
  @{ Lines = $text -split '\r?\n' }
}

# Straight to standard output: the pipeline would break a long line where a console ends.
function Write-Line($Line) { [Console]::Out.WriteLine($Line) }

# ---- what this run was asked for, and its limits -----------------------------------------------------------------------------------------------------------

# From the lines that the document puts before this script, or from the environment when it is run by hand. Without the first two no agent counts as fresh.
function Read-Number($Given, $Otherwise) { if ("$Given" -match '^[0-9]{1,10}$') { [long]$Given } else { $Otherwise } }
if (-not (Test-Path -Path 'variable:TriggeredAt')) { $TriggeredAt = $env:TRIGGERED_AT }
if (-not (Test-Path -Path 'variable:SentAt')) { $SentAt = $env:SENT_AT }
if (-not (Test-Path -Path 'variable:BusyWaitSeconds')) { $BusyWaitSeconds = $env:BUSY_WAIT_SECONDS }
if (-not (Test-Path -Path 'variable:MinMemoryMiB')) { $MinMemoryMiB = $env:MIN_MEMORY_MIB }
$TriggeredAt = Read-Number $TriggeredAt $null
$SentAt = Read-Number $SentAt $null
$BusyWaitSeconds = Read-Number $BusyWaitSeconds 120
$MinMemoryMiB = Read-Number $MinMemoryMiB 0

# Seconds, where nothing else is said.
$Deadline = $BusyWaitSeconds + 390 # of this script; Systems Manager would kill it 60 s later, without a line
$StopLimit = 150                   # a stop: it ends with the current long poll, up to 80 s, and any event that came with it; v2 adds up to 30 s
$SurvivorLimit = 30                # v1's processes outlive their stopped service by some seconds
$ReadyLimit = 60                   # until the service runs
$StartAttempts = 3                 # orders; v1's packed Ruby is known to miss the service control manager's own limit (1053)
$Stable = 12                       # the same process for this long
$ProofLimit = 75                   # until the log shows a poll; a long poll lasts 45 to 60
$BlindLimit = 45                   # the same process for this long, where the log tells nothing
$Recent = 300                      # so old may a poll be, of an agent that is left alone
$FollowUpLimit = 60                # until a follow-up has come up, another PowerShell on a host that may be short of everything
$InstallerLimit = 60               # an installer that works when the service is to be started, or that has taken it away
$RefusedPause = 15                 # after an order to start that was refused at once
$DrainMargin = 300                 # beyond the drain that the configuration allows
$AskLimit = 40                     # an order to the service control manager, which itself gives up after 30
$QueryLimit = 15                   # a question to the management service
$QuietLooks = 3                    # looks; the tracking folder is empty between two lifecycle events
$LookEvery = 2                     # between two looks at anything

$InstallerName = 'Global\_MSIExecute'
# Codes of an order to stop. 0: it will. 1053: no answer in time. 1061: it cannot be told now. 1062: it is stopped already.
$StopIsUnderWay = 0, 1053, 1061, 1062

# What this run has found and done so far.
$Version = ''
$MemoryBefore = 0
$MemoryAfter = 0
$Old = $null          # the agent that was found
$Seen = @{}           # all processes of agents that were seen, by identity: the identity of their service's process
$Stopping = $false    # an order to stop was taken
$Program = ''         # the service's executable
$Touched = $false     # the service was given an order
$FollowUpIsOurs = $false
$Starts = 0
$StartedAt = $null    # the moment before the order that started the agent
$Sick = $false        # a small agent that is not healthy, or not small after all, and so restarted
$Unproven = ''        # what of the agent's health could not be seen
$Verdict = $null
$ExitCode = 0

# Seconds that are left of this script, or the limit if that is less; at least 1.
function Get-AtMost($Limit) { [Math]::Max(1, [Math]::Min($Limit, $Began + $Deadline - (Get-Now))) }

# ---- the one line ----------------------------------------------------------------------------------------------------------------------------------------

# Text as the inside of a JSON string: ASCII without control characters, quotes or backslashes, so that nothing has to be escaped, and no escape is cut.
function ConvertTo-JsonText($Text, $Limit) {
  $clean = (("$Text" -creplace '[^\x21-\x7E]+', ' ').Replace('"', "'").Replace('\', '/')).Trim()
  $clean.Substring(0, [Math]::Min($clean.Length, $Limit))
}

# Ends the run, wherever it is; Invoke-Script tells it.
function Complete-Run([int]$Code, [string]$Result, [string]$Detail) {
  $script:Verdict = @{ Code = $Code; Result = $Result; Detail = $Detail }
  throw 'the run is over'
}

function Format-Verdict {
  $line = '{"agentRestart":1,"result":"' + $Verdict.Result + '","code":' + $Verdict.Code
  $line += ',"agentVersion":"' + (ConvertTo-JsonText $Version 60) + '"'
  $line += ',"memoryBeforeKiB":' + [long]$MemoryBefore + ',"memoryAfterKiB":' + [long]$MemoryAfter
  $line + ',"seconds":' + [long][Math]::Floor((Get-Now) - $Began) + ',"detail":"' + (ConvertTo-JsonText $Verdict.Detail 600) + '"}'
}

# Whatever ends this script, there is a line that is true.
function Resolve-Error($Problem) {
  $said = "$($Problem.Exception.GetBaseException().Message) (line $($Problem.InvocationInfo.ScriptLineNumber))"
  if (-not $Touched) { return @{ Code = 12; Result = 'preflight-failed'; Detail = "the agent was left alone: $said" } }
  $state = 'unknown'
  try {
    if ($Stopping -and (Test-FollowUp)) { return @{ Code = 34; Result = 'draining'; Detail = "the agent was asked to stop, and a new one starts when it has; the script ended early: $said" } }
    $state = Get-ServiceState
  }
  catch { $state = 'unknown' }
  if ($state -eq 'Stopped') { return @{ Code = 32; Result = 'agent-down'; Detail = "the service is stopped; the script ended early: $said" } }
  @{ Code = 33; Result = 'agent-unhealthy'; Detail = "the script ended before it could prove that the agent is healthy; the service is ${state}: $said" }
}

# ---- what is asked more than once ------------------------------------------------------------------------------------------------------------------------

# Asks up to three times: the management service is known to fail a single question under load, and a folder to vanish under the look.
function Get-Answer($Question) {
  for ($try = 1; $true; $try++) {
    try { return & $Question } catch { if ($try -ge 3) { throw } }
    Wait-Seconds $LookEvery
  }
}

# All processes. A list without this script's own is no answer.
function Get-Processes {
  Get-Answer {
    $all = @(Get-ProcessRecords)
    if (@($all | ForEach-Object { $_.ProcessId }) -notcontains (Get-OwnId)) { throw 'the list of processes lacks this one' }
    $all
  }
}

# Seconds since a process was noted under this name; nothing if it was not. The registry keeps "IDENTITY SECONDS", the latter since boot.
function Get-SecondsSince($Mark, $Identity) {
  $noted = "$(Get-Mark $Mark)" -split ' '
  if ($noted.Count -eq 2 -and $noted[0] -ceq $Identity -and $noted[1] -match '^[0-9]+$') { (Get-Now) - [long]$noted[1] }
}

# ---- the agent's installation ------------------------------------------------------------------------------------------------------------------------------

# The path without the prefix that v2's installer writes, and that the file functions of older .NET do not take.
function Get-PlainPath($Path) { "$Path" -replace '^\\\\\?\\', '' }

# The executable of a service's command line; empty when that cannot be told.
function Get-Executable($CommandLine) {
  if ("$CommandLine" -notmatch '^\s*(?:"([^"]+)"|(\S.*?\.exe)(?:\s|$))') { return '' }
  Get-PlainPath ([Environment]::ExpandEnvironmentVariables("$($Matches[1])$($Matches[2])"))
}

# There is no service, or none any more. Without it nothing can be started here.
function Complete-Uninstalled {
  if (Test-MutexHeld $InstallerName) {
    if (-not $Touched) { Complete-Run 21 'update-running' "Windows Installer works, and there is no service $ServiceName meanwhile" }
    Complete-Draining "Windows Installer works, and has taken the service $ServiceName away" (Get-Agent)
  }
  $left = "there is no service $ServiceName"
  if ([System.IO.File]::Exists($Program)) { $left += ", but still its program $Program" }
  elseif (@(Wait-ForSurvivors $false).Count -gt 0) { $left += ', but still a process of the agent' }
  else { Complete-Run 10 'not-installed' $left }
  if ($Touched) { Complete-Run 32 'agent-down' "${left}: install the agent again" }
  Complete-Run 12 'preflight-failed' "${left}: no agent could be started; it was left alone"
}

# The top level of the agent's configuration as YAML reads it: keys with a colon before them or not, in quotes or not; the last of several counts; only the first
# document. A value that goes on in further lines is no value that can be told for certain.
function Read-Configuration {
  $found = @{}
  # File.Exists would say of a file that cannot be read that there is none.
  try { $lines = [System.IO.File]::ReadAllLines([System.IO.Path]::Combine($AgentFolder, 'conf.yml')) }
  catch {
    $cause = $_.Exception.GetBaseException()
    if ($cause -is [System.IO.FileNotFoundException] -or $cause -is [System.IO.DirectoryNotFoundException]) { return $found }
    throw
  }
  $key = ''
  $indent = $null
  foreach ($line in $lines) {
    if ($line -match '^\s*(#|$)' -or $line -match '^%') { continue }
    if ($line -match '^(---|\.\.\.)\s*(#.*)?$') {
      if ($null -ne $indent) { break }
      continue
    }
    if ($null -eq $indent) { $indent = $line.Length - $line.TrimStart().Length }
    if ($line -cmatch ('^ {' + $indent + '}(?::?(?<key>\w+)|:?(["''])(?<key>\w+)\1)\s*:(?:\s+(?<value>.*))?$')) {
      $key = $Matches['key']
      $found[$key] = "$($Matches['value'])"
    }
    elseif ($key -ne '' -and $line -match ('^ {' + $indent + '}(\s|- )')) { $found[$key] += "`n$line" }
    else { throw "conf.yml cannot be read for certain: $line" }
  }
  $found
}

# One value of it.
function Get-Configured($Configuration, $Key, $Otherwise) {
  $text = "$($Configuration[$Key])"
  if ($text -cmatch "^'((?:[^'\n]|'')*)'\s*(?:#[^\n]*)?$") { return $Matches[1].Replace("''", "'") }
  if ($text -cmatch '^"((?:[^"\\\n]|\\[\\/"])*)"\s*(?:#[^\n]*)?$') { return $Matches[1] -replace '\\(.)', '$1' }
  $plain = ($text -creplace '(^|\s+)#[^\n]*$', '').Trim()
  if ($plain -ceq '' -or $plain -ceq '~' -or $plain -ceq 'null') { return $Otherwise }
  if ($plain -cmatch '^[&*!|>%@`{}\[\],"'']|^[-?:](\s|$)|:(\s|$)|\n') { throw "conf.yml: the value of $Key cannot be read for certain: $text" }
  $plain
}

# Where a configured path may be: a relative one is below ProgramData, as v1 reads it, or below the folder in which v2's service runs.
function Get-Places($Path) {
  $plain = Get-PlainPath $Path
  if ([System.IO.Path]::IsPathRooted($plain)) { return $plain }
  [System.IO.Path]::Combine($ProgramData, $plain)
  [System.IO.Path]::Combine((Get-Folder 'System'), $plain)
}

function Read-Installation {
  $script:ProgramData = Get-Folder 'CommonApplicationData'
  $script:AgentFolder = [System.IO.Path]::Combine($ProgramData, 'Amazon', 'CodeDeploy')
  $configuration = Read-Configuration
  $tracking = Get-Configured $configuration 'ongoing_deployment_tracking' 'ongoing-deployment'
  $script:Tracking = @(Get-Places (Get-Configured $configuration 'root_dir' $AgentFolder) | ForEach-Object { [System.IO.Path]::Combine($_, $tracking) })
  $script:LogFolders = @(Get-Places (Get-Configured $configuration 'log_dir' ([System.IO.Path]::Combine($AgentFolder, 'log'))))
  $script:ProgramName = Get-Configured $configuration 'program_name' 'codedeploy-agent'
  # v1 writes of its polls into another file then.
  $script:WireLog = (Get-Configured $configuration 'log_aws_wire' 'false') -notmatch '^(false|no|off)$'
  $script:DrainSeconds = [Math]::Min(86400, (Read-Number (Get-Configured $configuration 'kill_agent_max_wait_time_seconds' '') 7200))
  $file = [System.IO.Path]::Combine($AgentFolder, '.version')
  if ([System.IO.File]::Exists($file) -and [System.IO.File]::ReadAllText($file) -match 'agent_version:\s*(\S+)') { $script:Version = $Matches[1] }
}

# ---- the agent, as Windows has it --------------------------------------------------------------------------------------------------------------------------

# A process id together with the moment of its creation: Windows gives an id to another process soon. The moment is only compared with itself.
function Get-Identity($Process) {
  if ($null -eq $Process.CreationDate -or $Process.CreationDate.Year -lt 1980) { return "$($Process.ProcessId)" }
  "$($Process.ProcessId)/$($Process.CreationDate.ToFileTimeUtc())"
}

# The service's process and those it started that are the agent too: v1 is packed Ruby, so there may be a ruby.exe or rubyw.exe below it. Hooks are below it as
# well while they run, and are not the agent. An application that a hook left behind hangs below a process that is gone, and so is not found. A child that was seen
# below another service's process is that one's, whose id was given away. (Not by age: the clock may be set between a process's start and its child's.)
function Get-AgentProcesses($All, $ServiceProcessId) {
  $found = @($All | Where-Object { $_.ProcessId -eq $ServiceProcessId })
  if ($found.Count -eq 0) { return }
  $identity = Get-Identity $found[0]
  $names = $found[0].Name, 'ruby.exe', 'rubyw.exe'
  for ($next = 0; $next -lt $found.Count; $next++) {
    $parent = $found[$next]
    $found += @($All | Where-Object { $_.ParentProcessId -eq $parent.ProcessId -and $_.ProcessId -ne $parent.ProcessId -and
        $names -contains $_.Name -and @($null, $identity) -ccontains $Seen[(Get-Identity $_)] })
  }
  $found
}

# What runs at the moment: the service's state, and of its agent the process id and the moment of creation, all processes and their working sets. An answer that lacks
# something is none, and asked for again: the service, which an upgrade takes away for some seconds; its process; a process that the agent had before.
function Get-Agent {
  $end = [Math]::Max($PatienceEnd, (Get-Now) + $InstallerLimit)
  for ($try = 1; $true; $try++) {
    $agent = @{ State = 'gone'; StartMode = ''; ProcessId = 0; ParentId = 0; Identity = ''; Ids = @(); Processes = @(); MemoryKiB = 0; Created = $null; IsV2 = $false }
    $service = Get-Answer { Get-ServiceRecord }
    if ($null -eq $service) {
      if ($try -ge 3 -and ((Get-Now) -ge $end -or -not (Test-MutexHeld $InstallerName))) { return $agent }
    }
    else {
      $agent.State = $service.State
      $agent.StartMode = $service.StartMode
      $agent.ProcessId = $service.ProcessId
      $agent.IsV2 = "$($service.PathName)" -match '\srun-as-service'
      $script:Program = Get-Executable $service.PathName
      if ($service.ProcessId -eq 0 -and $service.State -ne 'Running') { return $agent }
      Add-Processes $agent
      $missing = @($Seen.Keys | Where-Object { $Seen[$_] -ceq $agent.Identity -and $agent.Processes -cnotcontains $_ })
      if (($agent.Identity -like '*/*' -and $missing.Count -eq 0) -or ($try -ge 3 -and $agent.Identity -ne '')) { return $agent }
      if ($try -ge 3) { throw "Windows does not list process $($service.ProcessId) of the service $ServiceName, which is $($service.State)" }
    }
    Wait-Seconds 1
  }
}

function Add-Processes($Agent) {
  $all = @(Get-Processes)
  foreach ($process in @(Get-AgentProcesses $all $Agent.ProcessId)) {
    $identity = Get-Identity $process
    $Agent.Ids += $process.ProcessId
    $Agent.Processes += $identity
    $Agent.MemoryKiB += [long]($process.WorkingSetSize / 1024)
    if ($process.ProcessId -eq $Agent.ProcessId) {
      $Agent.Identity = $identity
      $Agent.Created = $process.CreationDate
      $Agent.ParentId = $process.ParentProcessId
    }
  }
  foreach ($identity in $Agent.Processes) { if (-not $Seen.ContainsKey($identity)) { $Seen[$identity] = $Agent.Identity } }
}

# Waits until two looks running find nothing of the agents that ran before; gives their processes that stay. Nobody waits where another agent runs already, unless
# that is to be proven alone. The parent of packed Ruby is no survivor where Windows has the service in Ruby's own process.
function Wait-ForSurvivors($BesideAnother) {
  $end = (Get-Now) + (Get-AtMost $SurvivorLimit)
  $clear = 0
  while ($true) {
    $agent = Get-Agent
    $alive = @(Get-Processes | Where-Object { $_.ProcessId -ne $agent.ParentId } | ForEach-Object { Get-Identity $_ })
    $survivors = @($Seen.Keys | Where-Object { $alive -ccontains $_ -and $agent.Processes -cnotcontains $_ })
    if ($survivors.Count -eq 0) { $clear++ } else { $clear = 0 }
    if ($clear -ge 2 -or (Get-Now) -ge $end -or ($agent.ProcessId -ne 0 -and -not $BesideAnother)) { return $survivors }
    Wait-Seconds 1
  }
}

# ---- what the agent's log tells ----------------------------------------------------------------------------------------------------------------------------

# The end of a file in the log folder; where there are several such folders, of that with the newest line (a file that is open may show an old time of writing).
# Nothing when it cannot be read.
function Get-LogLines($Name) {
  $lines = @()
  $newest = ''
  foreach ($folder in $LogFolders) {
    try { $tail = Read-Tail ([System.IO.Path]::Combine($folder, $Name)) } catch { $tail = $null }
    if ($null -eq $tail) { continue }
    $stamp = "$($tail.Lines | Where-Object { $_ -match '^\d{4}-' } | Select-Object -Last 1)".Replace('T', ' ')
    if ($lines.Count -eq 0 -or $stamp -gt $newest) {
      $lines = @($tail.Lines)
      $newest = $stamp
    }
  }
  $lines
}

function Get-LogName($Agent) { if ($Agent.IsV2) { "$ProgramName.log" } else { 'codedeploy-agent-log.txt' } }

# The last errors, for the detail of a failure.
function Get-LastErrors($Agent) {
  $errors = @(Get-LogLines (Get-LogName $Agent) | Select-Object -Last 40 | Where-Object { $_ -cmatch 'ERROR|FATAL' } | Select-Object -Last 2)
  # What v2 could not even log, as with a configuration that it cannot read.
  if ($errors.Count -eq 0 -and $Agent.IsV2) { $errors = @(Get-LogLines 'service-bootstrap.log' | Where-Object { $_ -ne '' } | Select-Object -Last 1) }
  if ($errors.Count -eq 0) { return '; its log tells no error' }
  '; log: ' + (@($errors | ForEach-Object { $_.Substring(0, [Math]::Min($_.Length, 250)) }) -join ' ')
}

# What the log tells of this agent's polls: Heard is 'good', 'bad' with the number of Errors since and the last one's Text, 'none', 'ending' or 'unknown'.
#
# v1 writes each poll that CodeDeploy answered, with the process's number, in local time. v2 writes none of these, but that its worker has entered its polling
# loop, after credentials, region and TLS, and each poll that failed; no number, UTC. Times are compared with the newest one in the log; an agent that is left
# alone must have polled within $Recent. Errors of hooks mean nothing here.
function Read-Polls($Agent) {
  $polls = @{ Heard = 'unknown'; Errors = 0; Text = '' }
  $lines = @(Get-LogLines (Get-LogName $Agent))
  $today = Get-TimeOfDay
  $created = $Agent.Created
  if ($null -ne $created) { $created = $created.ToUniversalTime() }
  # The clock was set back since.
  if ($null -ne $created -and $created -gt $today) { $created = $null }
  # The line of a worker that is older than its checks can take may have been rotated away.
  $entered = $Agent.IsV2 -and $null -ne $created -and ($today - $created).TotalSeconds -gt 60
  if (-not $Agent.IsV2) {
    $today = $today.ToLocalTime()
    if ($null -ne $created) { $created = $created.ToLocalTime() }
    # The hour that is had twice when summer time ends.
    if ($null -ne $created -and [TimeZoneInfo]::Local.IsAmbiguousTime($created)) { $created = $null }
  }
  $number = '\((?:' + ($Agent.Ids -join '|') + ')\)\]: '
  $known = $false
  $ours = $entered
  $at = $null; $good = $null; $failed = $null; $asked = $false
  $failures = 0; $tries = 0
  foreach ($line in $lines) {
    if ($line -cmatch '^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)') {
      $stamp = [DateTime]::MinValue
      $isStamp = [DateTime]::TryParseExact("$($Matches[1]) $($Matches[2])", 'yyyy-MM-dd HH:mm:ss', [Globalization.CultureInfo]::InvariantCulture, 'None', [ref]$stamp)
      if ($isStamp) { $at = $stamp }
    }
    # An earlier process may have had the same number.
    if ($null -ne $at -and $null -ne $created -and $at -lt $created.AddSeconds(-2)) { continue }
    # The report of a failed hook, with what that hook printed.
    if ($line -clike '*put_host_command_complete(*') { continue }
    if ($Agent.IsV2) {
      if ($line -cmatch ' Worker (\d+) (starting|entering polling loop)') {
        $ours = $Agent.Ids -contains [long]$Matches[1]
        $entered = $ours -and $Matches[2] -ceq 'entering polling loop'
        $failures = 0; $tries = 0; $asked = $false
      }
      if (-not $ours) { continue }
    }
    elseif ($line -cnotmatch $number) { continue }
    $known = $true
    if ($line -cmatch '\[Aws::CodeDeployCommand::Client 200 .*\] poll_host_command') { $good = $at; $failures = 0; $tries = 0 }
    elseif ($line -cmatch 'CommandPoller: (Missing credentials|Cannot reach InstanceService|Network error)|error during start or run|failed to run as the connection') {
      $failures++; $failed = $at; $polls.Text = $line
    }
    elseif ($line -clike '*Error polling for host commands*') {
      $tries++; $failed = $at
      if ($failures -lt $tries) { $polls.Text = $line }
    }
    elseif ($line -clike '*Polling loop stopped*') { $asked = $true }
  }
  if ($null -eq $at) { return $polls }
  $isNew = [Math]::Abs(($today - $at).TotalSeconds) -le $Recent
  $polls.Errors = [Math]::Max($failures, $tries)
  $polls.Text = $polls.Text -creplace '^\S+ \w+ +\[[^\]]*\]: (InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller: )?', ''
  if (-not $isNew -or ($null -ne $failed -and ($at - $failed).TotalSeconds -gt $Recent)) { $polls.Errors = 0 }
  if ($asked) { $polls.Heard = 'ending' }
  elseif ($polls.Errors -gt 0) { $polls.Heard = 'bad' }
  elseif ($entered -or ($null -ne $good -and $isNew -and ($at - $good).TotalSeconds -le $Recent)) { $polls.Heard = 'good' }
  elseif ($known -and ($Agent.IsV2 -or -not $WireLog)) { $polls.Heard = 'none' }
  $polls
}

# ---- what must not be disturbed ----------------------------------------------------------------------------------------------------------------------------

# A lifecycle event runs: the agent keeps a file for it. It ignores files older than a day, by the same clock of the same host, and so does this. What an agent
# left that has died in one does not count. Whether the agent is younger than the file is not asked: Windows knows only the time of day of both, which is set at boot.
function Get-LifecycleEvent {
  foreach ($folder in $Tracking) {
    foreach ($file in @(Get-Answer { Get-FilesBelow $folder })) {
      if ($file.Written -gt (Get-TimeOfDay).AddDays(-1) -and (Get-Agent).Identity -ne '') { return $file.Name }
    }
  }
  ''
}

# Who installs something, the agent itself included; empty when nobody does. Windows Installer's own msiexec.exe stays for minutes after its work, so it counts
# only with the agent's package on its command line; the mutex is held while an installation is executed, and only then (Microsoft, "_MSIExecute Mutex").
function Get-Installer {
  if (Test-MutexHeld $InstallerName) { return 'Windows Installer' }
  $installers = @(Get-Processes | Where-Object { $_.Name -like 'codedeploy-agent-updater*' -or
      ($_.Name -eq 'msiexec.exe' -and "$($_.CommandLine)" -match 'codedeploy') })
  if ($installers.Count -gt 0) { return "$($installers[0].Name) ($($installers[0].ProcessId))" }
  ''
}

function Wait-UntilQuiet {
  $looks = 0
  while ($looks -lt $QuietLooks) {
    $lifecycleEvent = Get-LifecycleEvent
    $installer = Get-Installer
    if ($lifecycleEvent -eq '' -and $installer -eq '') { $looks++ }
    else {
      $looks = 0
      if ((Get-Now) -ge $PatienceEnd) {
        if ($lifecycleEvent -ne '') { Complete-Run 20 'busy' "a lifecycle event of $lifecycleEvent still runs after $BusyWaitSeconds s" }
        Complete-Run 21 'update-running' "$installer still installs something after $BusyWaitSeconds s"
      }
    }
    if ($looks -lt $QuietLooks) { Wait-Seconds $LookEvery }
  }
}

# ---- the lock: one run at a time on this host --------------------------------------------------------------------------------------------------------------

function Enter-Lock {
  while (-not (Enter-Mutex $LockName)) {
    if ((Get-Now) -ge $PatienceEnd) { Complete-Run 22 'restart-running' "another restart holds the lock after $BusyWaitSeconds s" }
    Wait-Seconds 1
  }
}

# ---- the follow-up: who starts the service after a stop that outlasts this script ----------------------------------------------------------------------------

# Windows knows a stop, but no restart: an agent that drains for longer than this script waits, or than this script lives, would stay stopped, and the rest of
# the running deployment would fail on it. So this script runs once more, hidden, as a process that waits for the stop and starts the service. It does so only
# when the stop was asked for, and the run that asked is over or was killed. It asks the service control manager, never the management service.

function New-FollowUp($Arguments) {
  $run, $old, $generation, $seconds = $Arguments
  $state = @{
    Run = [int]$run; Old = [int]$old; IsV2 = $generation -ceq 'v2'; Asked = "$FollowUpName-$run"; Ends = (Get-Now) + [long]$seconds + $DrainMargin
    Gone = 0; Ordered = $false; StoppedAt = 0; Starts = 0; NotBefore = 0
  }
  # From here on these numbers stay theirs.
  $null = Test-Alive $state.Run
  $null = Test-Alive $state.Old
  New-Signal $state.Asked
  New-Signal $FollowUpName
  $state
}

# One look. Gives whether the follow-up is over.
function Step-FollowUp($State) {
  $now = Get-Now
  # Once the service has stopped, an hour more: the start was promised.
  if ($now -ge $State.Ends -and ($State.StoppedAt -eq 0 -or $now - $State.StoppedAt -ge 3600)) { return $true }
  $runs = Test-Alive $State.Run
  try {
    $service = Get-ServiceState
    $installs = Test-MutexHeld $InstallerName
    # Removed. An upgrade takes it away for some seconds.
    if ($service -eq '') {
      if (-not $installs) { $State.Gone++ }
      return $State.Gone -ge 15
    }
    $State.Gone = 0
    # Nothing was asked yet: without its run, which has the lock, nobody needs it, nor when somebody else stops the service.
    if (-not (Test-SignalSet $State.Asked)) { return -not $runs -or $service -eq 'Stopped' -or -not (Test-MutexHeld $LockName) }
    if ($service -ne 'Stopped') { $State.StoppedAt = 0 } elseif ($State.StoppedAt -eq 0) { $State.StoppedAt = $now }
    if ($service -eq 'Running') {
      # In another process it is somebody else's start. (0 is the number of Windows' own idle process.)
      if ($State.Old -eq 0 -or -not (Test-Alive $State.Old)) { return $true }
      if ($runs -or $State.Ordered) { return $false }
      # v1 that is asked to stop is StopPending: its run was killed before it could ask. v2 stays Running until it has drained, so it is asked once more.
      if (-not $State.IsV2) { return $true }
      if ($installs) { return $false }
      $State.Ordered = $true
      return $StopIsUnderWay -notcontains (Send-ServiceOrder 'stop')
    }
    # v1's processes outlive the service by some seconds. An installation starts it by itself, if it does not hang.
    if ($runs -or $service -ne 'Stopped' -or $now - $State.StoppedAt -lt $SurvivorLimit -or $now -lt $State.NotBefore) { return $false }
    if ($installs -and $now - $State.StoppedAt -lt 1800) { return $false }
    $code = Send-ServiceOrder 'start'
    # 1056: the old process has not ended yet.
    if ($code -ne 1056) { $State.Starts++ }
    $State.NotBefore = $now + [Math]::Min(60, $RefusedPause * $State.Starts)
    # 1058, 1060, 1072: somebody disabled the service, or removes it.
    (1058, 1060, 1072) -contains $code -or $State.Starts -ge 20
  }
  catch { $false }
}

function Invoke-FollowUp($Arguments) {
  $state = New-FollowUp $Arguments
  # The run's own limits are none of this.
  $script:Deadline = $state.Ends - $Began + 7200
  do { Wait-Seconds $LookEvery } until ((Test-SignalSet $FollowUpName) -or (Step-FollowUp $state))
}

# Our follow-up is seen to live.
function Test-FollowUp { $FollowUpIsOurs -and (Test-Signal $AskedName) }

# Gives whether it has come up: a policy, or a security product, may forbid it.
function Start-FollowUp($Agent) {
  $generation = 'v1'
  if ($Agent.IsV2) { $generation = 'v2' }
  try { Start-FollowUpProcess "$(Get-OwnId) $($Agent.ProcessId) $generation $DrainSeconds" } catch { return $false }
  $script:FollowUpIsOurs = $true
  $end = (Get-Now) + (Get-AtMost $FollowUpLimit)
  while (-not (Test-FollowUp)) {
    if ((Get-Now) -ge $end) { return $false }
    Wait-Seconds 0.5
  }
  $true
}

# Only our own: that of an earlier run still has its service to start.
function Stop-FollowUp {
  if (-not $FollowUpIsOurs) { return }
  $script:FollowUpIsOurs = $false
  try { Set-Signal $FollowUpName } catch { return }
}

# The service stops, and this run does not wait for it. Says who starts it, which has to be seen.
function Complete-Draining($Why, $Agent) {
  if ((Test-FollowUp) -or (Start-FollowUp $Agent)) {
    Set-Signal $AskedName
    Complete-Run 34 'draining' "${Why}; a new agent starts when it has stopped"
  }
  Complete-Run 34 'draining' "${Why}; nothing starts it when it has stopped: start the service $ServiceName then"
}

# An earlier run's stop, or anybody's, is still under way. The state alone does not tell: v2 stays Running until it has drained. A stop that never ends is a known
# deadlock in the service library of v1.
function Wait-ForPendingStop {
  # The follow-up of a run that has just ended takes a look to end.
  $end = [Math]::Max($PatienceEnd, (Get-Now) + 5 * $LookEvery)
  while ($true) {
    $agent = Get-Agent
    if ($agent.State -eq 'gone') { Complete-Uninstalled }
    $stops = $agent.State -eq 'Stop Pending'
    if (-not $stops -and -not (Test-Signal $FollowUpName)) { return }
    $seconds = Get-SecondsSince 'Stopping' $agent.Identity
    if ($stops -and $null -eq $seconds) { Set-Mark 'Stopping' "$($agent.Identity) $([long][Math]::Floor((Get-Now)))" }
    if ($stops -and $null -ne $seconds -and $seconds -gt $DrainSeconds + $DrainMargin) {
      $script:MemoryBefore = $agent.MemoryKiB
      $script:MemoryAfter = $agent.MemoryKiB
      Complete-Run 33 'agent-unhealthy' ("the service has been stopping for $([long]$seconds) s, longer than its agent may drain: end process " +
        "$($agent.ProcessId) (taskkill /F /PID $($agent.ProcessId)), then start the service")
    }
    if ((Get-Now) -ge $end) {
      if (Test-Signal $FollowUpName) { Complete-Run 34 'draining' 'the agent was asked to stop earlier, and still finishes a lifecycle event; a new agent starts then' }
      Complete-Draining 'somebody asked the service to stop, and its agent still finishes a lifecycle event' $agent
    }
    Wait-Seconds $LookEvery
  }
}

# ---- the proof ---------------------------------------------------------------------------------------------------------------------------------------------

# Windows keeps of a process only the time of day at which it was created, and that clock is set at boot and by whoever likes to. So the age is not computed
# from it. Two upper bounds are, by the clock that nobody can set: nothing is older than the boot, and an agent that an earlier run of this script started
# is no older than the mark which that run left. Any other agent counts as old: a needless restart, never a stale agent called fresh.
#
# Fresh: its age when this script began is at most the time between the deployment's end and the sending, both by clocks of AWS's. No two machines' clocks are
# compared. A late delivery only makes an agent look older than it is.
function Test-Fresh($Agent) {
  if ($null -eq $TriggeredAt -or $null -eq $SentAt) { return $false }
  $age = $Began
  $started = Get-SecondsSince 'Started' $Agent.Identity
  if ($null -ne $started) { $age = [Math]::Min($age, $Began - ((Get-Now) - $started)) }
  $age -le $SentAt - $TriggeredAt
}

function Test-Small($Agent) { $MinMemoryMiB -gt 0 -and $Agent.MemoryKiB -lt $MinMemoryMiB * 1024 }

function New-Disproof($Code, $Result, $Detail) { @{ Code = $Code; Result = $Result; Detail = $Detail } }

# The service runs, in none of the processes $Replaced, in the same one for $Stable seconds, and CodeDeploy hears it. Whoever else restarts it meanwhile is looked
# through: the newer one is proven. Gives nothing if so, else what is wrong; $Unproven says what could not be seen.
function Get-Disproof($Replaced) {
  $end = (Get-Now) + (Get-AtMost $ReadyLimit)
  $watched = ''
  $changes = 0
  $since = 0
  $heard = ''
  $heardSince = 0
  while ($true) {
    $agent = Get-Agent
    $script:MemoryAfter = $agent.MemoryKiB
    $now = Get-Now
    if ($agent.State -eq 'Stopped' -or $agent.State -eq 'gone') { return New-Disproof 32 'agent-down' "the service does not run$(Get-LastErrors $agent)" }
    if ($agent.State -ne 'Running' -or $Replaced -ccontains $agent.Identity) {
      if ($now -ge $end) { return Get-UnreadyDisproof $agent }
    }
    else {
      if ($agent.Identity -cne $watched) {
        $watched = $agent.Identity
        $since = $now
        $heard = ''
        $changes++
        $end = $now + (Get-AtMost $ReadyLimit)
      }
      if ($changes -gt $StartAttempts) { return New-Disproof 33 'agent-unhealthy' "the agent does not stay, and is started again and again$(Get-LastErrors $agent)" }
      $polls = Read-Polls $agent
      if ($polls.Heard -cne $heard) {
        $heard = $polls.Heard
        $heardSince = $now
      }
      $disproof = Get-PollDisproof $agent $polls ($now - $since) ($now - $heardSince)
      if ($null -ne $disproof) {
        if ($disproof.Code -eq 0) { return }
        return $disproof
      }
    }
    if ($now -ge $Began + $Deadline) { return New-Disproof 33 'agent-unhealthy' "the time was over before the agent was proven healthy$(Get-LastErrors $agent)" }
    Wait-Seconds $LookEvery
  }
}

# What is to be said after so many seconds in one process, and so many in which its log told the same; nothing while that is open; code 0 when it is healthy.
function Get-PollDisproof($Agent, $Polls, $Seconds, $SameSeconds) {
  $script:Unproven = ''
  if ($Seconds -lt $Stable) { return }
  $healthy = New-Disproof 0 '' ''
  $late = $Seconds -ge $ProofLimit
  if ($Polls.Heard -eq 'good') {
    # v1's poll was answered. v2's is under way.
    if (-not $Agent.IsV2 -or $SameSeconds -ge $Stable) { return $healthy }
  }
  elseif ($Polls.Heard -eq 'unknown') {
    $script:Unproven = "no poll was seen: no log tells of this agent in $($LogFolders -join ', ')"
    if ($SameSeconds -ge $BlindLimit) { return $healthy }
  }
  elseif ($Polls.Heard -eq 'bad') {
    # After one bad poll v2 says nothing of the good ones that followed.
    if ($late -and $Agent.IsV2 -and $Polls.Errors -eq 1) { return $healthy }
    if ($late -or $Polls.Errors -gt 1) { return New-Disproof 33 'agent-unhealthy' "CodeDeploy does not hear the agent; log: $($Polls.Text)" }
  }
  elseif ($late -and $Polls.Heard -eq 'ending') { return New-Disproof 34 'draining' 'somebody else has asked the agent to stop, and it still finishes' }
  elseif ($late) { return New-Disproof 33 'agent-unhealthy' "the service runs, but no poll of its agent ended within $([long]$Seconds) s$(Get-LastErrors $Agent)" }
}

function Get-UnreadyDisproof($Agent) {
  if ($Agent.State -eq 'Running') { return New-Disproof 31 'old-agent-survived' "process $($Agent.ProcessId) still runs: the restart did nothing to it" }
  if ($Agent.State -eq 'Stop Pending') { return New-Disproof 34 'draining' 'somebody else has asked the service to stop, and its agent still finishes' }
  New-Disproof 33 'agent-unhealthy' "the service is $($Agent.State)$(Get-LastErrors $Agent)"
}

# Ends with the result if the agent is healthy, else with what is wrong. Where nothing runs it is started once more.
function Complete-Proven($Result, $Replaced) {
  for ($deaths = 1; $true; $deaths++) {
    $disproof = Get-Disproof $Replaced
    if ($null -eq $disproof -or $disproof.Code -ne 32 -or [Math]::Max($deaths, $Starts) -ge $StartAttempts) { break }
    if ($Result -ceq 'already-restarted') { $Result = 'started' }
    Start-AgentService
  }
  $agent = Get-Agent
  if ($null -ne $disproof) {
    if ($agent.State -eq 'gone') { Complete-Uninstalled }
    if ($disproof.Code -eq 34) { Complete-Draining $disproof.Detail $agent }
    Complete-Run $disproof.Code $disproof.Result $disproof.Detail
  }
  $survivors = @(Wait-ForSurvivors $true)
  if ($survivors.Count -gt 0) {
    Complete-Run 31 'old-agent-survived' "a new agent runs, and beside it still the old one's processes $($survivors -join ', ')"
  }
  if ($null -ne $StartedAt) { Set-Mark 'Started' "$($agent.Identity) $([long][Math]::Floor($StartedAt))" }
  Complete-Run 0 $Result $Unproven
}

# Notes which agent runs, and ends if it needs no restart. Done again after every wait, since another run, or an update, may have restarted it meanwhile.
function Resolve-RunningAgent {
  $agent = Get-Agent
  if ($agent.State -eq 'gone') { Complete-Uninstalled }
  $script:Old = $null
  $script:MemoryBefore = $agent.MemoryKiB
  if ($agent.Identity -eq '') { return }
  $script:Old = $agent
  # A fresh agent that is not healthy is told, not restarted again: the restart did not help it.
  if (Test-Fresh $agent) { Complete-Proven 'already-restarted' @() }
  if (-not $Sick -and (Test-Small $agent)) {
    # A list of processes may have lacked some: it is measured again.
    if ($null -eq (Get-Disproof @()) -and (Test-Small (Get-Agent))) { Complete-Run 0 'below-threshold' $Unproven }
    $script:Sick = $true
  }
}

# A new agent would not start: its service is disabled, or its executable is gone. The old one still works: leave it. There is no more to ask on Windows: v1
# has no command line for its service, and v2's refuses `status` there.
function Assert-StartIsPossible {
  $agent = Get-Agent
  if ($agent.State -eq 'gone') { Complete-Uninstalled }
  if ($agent.StartMode -eq 'Disabled') { Complete-Run 12 'preflight-failed' "the service $ServiceName is disabled; the agent was left alone" }
  if ([System.IO.Path]::IsPathRooted($Program) -and -not [System.IO.File]::Exists($Program)) {
    Complete-Run 12 'preflight-failed' "there is no $Program; the agent was left alone"
  }
}

# ---- the restart -------------------------------------------------------------------------------------------------------------------------------------------

# An order, and Windows' own code for it; text when it could not even be given.
function Send-Order($Verb) {
  try { $code = Send-ServiceOrder $Verb } catch { return $_.Exception.GetBaseException().Message }
  $script:Touched = $true
  $code
}

# Asks the service to stop and waits for it. The agent is never ended by force: it finishes what it does.
function Stop-AgentService {
  $end = (Get-Now) + (Get-AtMost $StopLimit)
  $code = $null
  while ($true) {
    $agent = Get-Agent
    $script:MemoryAfter = $agent.MemoryKiB
    # Somebody else was faster, perhaps with a restart.
    if ($agent.Identity -cne $Old.Identity -and $agent.State -ne 'Stop Pending') { break }
    # 1061: it cannot be told now, because it is starting, or because it is stopping already.
    if ($null -eq $code -or ($code -eq 1061 -and $agent.State -ne 'Stop Pending')) {
      # From here on the follow-up outlives this run.
      Set-Signal $AskedName
      $code = Send-Order 'stop'
      if ($code -is [string]) { Complete-Run 12 'preflight-failed' "the agent was left alone: it could not be asked to stop: $code" }
      if (@(0, 1053, 1062) -contains $code) { $script:Stopping = $true }
    }
    $late = (Get-Now) -ge $end
    if ($StopIsUnderWay -notcontains $code -or ($late -and $code -eq 1061 -and $agent.State -ne 'Stop Pending')) {
      Complete-Run 31 'old-agent-survived' "the service refused to stop: sc.exe ended with $code"
    }
    if ($late) { Complete-Draining "the agent finishes a lifecycle event first (the service is $($agent.State))" $Old }
    Wait-Seconds 1
  }
}

# An installer began while the agent stopped: it may replace the agent, and starts the service by itself then.
function Wait-ForInstaller {
  $end = (Get-Now) + (Get-AtMost $InstallerLimit)
  while (($installer = Get-Installer) -ne '') {
    if ((Get-Now) -ge $end) {
      if (Test-FollowUp) { Complete-Draining "the agent has stopped, and $installer installs something" $Old }
      return
    }
    Wait-Seconds $LookEvery
  }
}

# Gives up to three orders to start, until the service runs. Their codes prove nothing, so what runs is looked at in any case; they only tell why nothing does.
function Start-AgentService {
  $end = (Get-Now) + (Get-AtMost $ReadyLimit)
  $code = 0
  while ($true) {
    $agent = Get-Agent
    if ($agent.State -eq 'gone') { Complete-Uninstalled }
    if ($agent.State -eq 'Running' -or (Get-Now) -ge $end) { break }
    if ($agent.State -eq 'Stopped') {
      if ($Starts -ge $StartAttempts) { break }
      # One that stays would poll beside the new agent: that is told at the end, but the host needs an agent.
      $null = Wait-ForSurvivors $false
      Wait-ForInstaller
      if ((Get-Agent).State -ne 'Stopped') { continue }
      $before = Get-Now
      $code = Send-Order 'start'
      # 1056: it runs already, who knows since when; or the old process has not ended yet.
      $script:StartedAt = $null
      if ($code -ne 1056) {
        $script:Starts++
        $end = (Get-Now) + (Get-AtMost $ReadyLimit)
      }
      if (@(0, 1053) -contains $code) { $script:StartedAt = $before }
      elseif ($code -ne 1056) { Wait-Seconds (Get-AtMost $RefusedPause) }
    }
    Wait-Seconds $LookEvery
  }
  if ($agent.State -eq 'Stopped' -and @(0, 1053, 1056) -notcontains $code) {
    Complete-Run 30 'service-manager-failed' "the service could not be started: sc.exe start ended with ${code}$(Get-LastErrors $agent)"
  }
  if ($agent.State -eq 'Running') { Stop-FollowUp }
}

# ---- the story ---------------------------------------------------------------------------------------------------------------------------------------------

function Invoke-Restart {
  if (-not (Test-Administrator)) { Complete-Run 11 'not-root' 'run it as an administrator' }
  Read-Installation

  Enter-Lock
  Wait-ForPendingStop
  Resolve-RunningAgent

  Wait-UntilQuiet
  Wait-ForPendingStop
  Resolve-RunningAgent
  Assert-StartIsPossible
  if ($null -eq $Old) {
    Start-AgentService
    Complete-Proven 'started' @()
  }
  if (-not (Start-FollowUp $Old)) {
    Complete-Run 12 'preflight-failed' 'the agent was left alone: the process that would start it after a long stop does not come up'
  }
  # It took some seconds.
  Wait-UntilQuiet
  Stop-AgentService
  Start-AgentService
  Complete-Proven 'restarted' $Old.Processes
}

# What a step may leave in the pipeline is no part of the output.
function Invoke-Script($Arguments) {
  $script:Began = Get-Now
  $script:PatienceEnd = $Began + $BusyWaitSeconds # until when this run waits for other things on the host
  $script:AskedName = "$FollowUpName-$(Get-OwnId)" # of our follow-up: exists as long as it; set, the stop has been asked for
  if (@($Arguments).Count -eq 5 -and $Arguments[0] -ceq 'follow-up') {
    try { $null = Invoke-FollowUp $Arguments[1..4] } catch { return }
    return
  }
  try { $null = Invoke-Restart }
  catch { if ($null -eq $Verdict) { $script:Verdict = Resolve-Error $_ } }
  # Where the service does not start, the follow-up tries for longer.
  if (@(30, 32, 34) -notcontains $Verdict.Code) { Stop-FollowUp }
  elseif ($Verdict.Code -ne 34 -and $FollowUpIsOurs) { $Verdict.Detail = "it is tried again in the background; $($Verdict.Detail)" }
  Exit-Mutex $LockName
  Write-Line (Format-Verdict)
  $script:ExitCode = $Verdict.Code
}

# ---- the start ---------------------------------------------------------------------------------------------------------------------------------------------

$null = Invoke-Script $args
exit $ExitCode
