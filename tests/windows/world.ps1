# A small simulated Windows: a clock, processes, the service control manager with the agent's service, agents of both generations, named objects.
#
# All of it is one hashtable, $World. A follow-up has functions of its own (as a process has), and the same $World. Time passes in Step-SimTime alone, which runs
# what is due on the way. What this Windows does is as unkind as the real one; where each trait is known from stands in README.md.

Set-StrictMode -Version 2.0

# ---- the world -------------------------------------------------------------------------------------------------------------------------------------------

# Seconds since boot at which each case begins, and what the clocks on the wall show at that moment.
$SimStart = 100000.0
$SimStartOfDay = New-Object -TypeName System.DateTime -ArgumentList 2026, 11, 26, 12, 0, 0, ([System.DateTimeKind]::Utc)
# Seconds after which a run that has not ended counts as one that hangs.
$SimRunLimit = 1000

function New-SimList { , (New-Object -TypeName System.Collections.ArrayList) }

# A Windows on which v1 is installed, and does not run yet. Folder plays the disk; Text is the file with the script's functions.
function New-SimWorld($Folder, $Bench, $Text) {
  $world = @{
    Folder = $Folder; Bench = $Bench; Text = $Text
    ProgramData = Join-Path $Folder 'ProgramData'; System = Join-Path $Folder 'System32'
    Clock = $SimStart; Offset = 0.0
    # What will happen, what waits for a condition, and what went wrong in it: the bench's own fault.
    Due = New-SimList; Order = 0; Watches = New-SimList; Broken = New-SimList
    # Time passes at the moment; seconds that a follow-up's look has used up meanwhile; all runs are over.
    Stepping = $false; Debt = 0.0; Settling = $false
    Processes = New-SimList; NextId = 4000; FreeIds = New-SimList; ReusesIds = $false
    Owners = New-SimList; Objects = @{}; Marks = @{}; HasRegistry = $true; Administrator = $true
    # The next agents that start, in this order, and then all others.
    Agents = New-SimList; Plans = New-SimList; Plan = $null
    Service = $null; Orders = New-SimList; Harm = New-SimList; Blocks = 0.0; LastDeed = 0.0
    # Seconds until a follow-up that was started comes up (never: -1), or the words with which Windows refuses it.
    FollowUpComes = 3.0; FollowUpRefused = ''; FollowUps = New-SimList
    Troubles = New-SimList; Vanishing = 0
    LogFolder = ''; HasLog = $true; Tracking = ''; MaxWait = 7200
    Run = $null; Trace = New-SimList; Tracing = $false
  }
  $agentFolder = Join-Path (Join-Path $world.ProgramData 'Amazon') 'CodeDeploy'
  $world.LogFolder = Join-Path $agentFolder 'log'
  $world.Tracking = Join-Path $agentFolder 'ongoing-deployment'
  $null = [System.IO.Directory]::CreateDirectory($world.LogFolder)
  $null = [System.IO.Directory]::CreateDirectory((Join-Path $agentFolder 'bin'))
  $null = [System.IO.Directory]::CreateDirectory($world.System)
  $executable = Join-Path (Join-Path $agentFolder 'bin') 'codedeploy-agent.exe'
  [System.IO.File]::WriteAllText($executable, 'MZ')
  [System.IO.File]::WriteAllText((Join-Path $agentFolder '.version'), "agent_version: OFFICIAL_1.8.1-27_msi`n")
  $world.Service = @{
    Exists = $true; Deleted = $false; State = 'Stopped'; StartMode = 'Auto'; Executable = $executable; PathName = '"' + $executable + '"'
    # The process of the service, also while it outlives the service's stop; and the agent in it.
    Process = $null; Agent = $null
    # Codes with which the next orders are refused; seconds after which the service control manager starts a service that died (never: 0).
    StopCodes = New-SimList; StartCodes = New-SimList; Recovery = 0
    # What sc.exe says of a stop that was taken all the same; the words with which it cannot be run at all.
    StopAnswer = 0; Unrunnable = ''
    # What was true before the latest change: what a stale answer still shows.
    Before = $null
  }
  $world.Plan = New-SimPlan @{}
  $world
}

# How an agent behaves. Seconds, unless it says otherwise.
function New-SimPlan($Changes) {
  $plan = @{
    Kind = 'v1'
    # v1: its packed Ruby unpacks, for which time sc.exe waits; and then the service is still Start Pending.
    Connect = 4.0; Pending = 2.0
    # How polls go: 'good', or a failure of Write-SimPollFailure; or a script block that gives one of them.
    Poll = 'good'; First = 3.0; PollSeconds = 45.0
    # v2: the metadata service needs this long for credentials and region, or one of its checks fails: 'credentials', 'region', 'tls'.
    Metadata = 1.0; Fails = ''; EndsAfterFailure = 15.0
    # v2: pause between two polls, in which a stop is not seen.
    Between = 20.0
    # It ends by itself so long after it runs (never: -1), by a crash, of which the service control manager hears nothing, or in order.
    DiesAfter = -1.0; Crashes = $true
    # Its stop never ends (a deadlock of the service library); its processes outlive Stopped: the service's own, and Ruby.
    Deadlock = $false; Linger = 3.0; RubyLingers = -1.0
    Ruby = 'ruby.exe'; MemoryMiB = 52; LogsPolls = $true
  }
  foreach ($key in @($Changes.Keys)) {
    if (-not $plan.ContainsKey($key)) { throw "a plan has no $key" }
    $plan[$key] = $Changes[$key]
  }
  $plan
}

# ---- time ------------------------------------------------------------------------------------------------------------------------------------------------

function Get-SimTimeOfDay($At) { $SimStartOfDay.AddSeconds($At - $SimStart + $World.Offset) }

# What happens at a moment: the name of a function, or a script block, and what it is called with.
function Add-SimDue($At, $Do, $With) {
  $World.Order++
  $null = $World.Due.Add(@{ At = [double]$At; Order = $World.Order; Do = $Do; With = $With })
}

# For cases: so many seconds from now; and once, as soon as a condition holds (looked at each second).
function Add-SimLater($Seconds, $Do) { Add-SimDue ($World.Clock + $Seconds) $Do $null }
function Add-SimWhen($When, $Do) { $null = $World.Watches.Add(@{ When = $When; Do = $Do }) }

function Get-SimNextDue {
  $next = [double]::MaxValue
  foreach ($due in $World.Due) { if ($due.At -lt $next) { $next = $due.At } }
  $next
}

# Lets time pass, in steps of a second at most, and runs what is due on the way. Whoever is run by it does not let time pass: what it waits for is counted, and
# delays its next turn.
function Step-SimTime($Seconds) {
  if ($World.Stepping) {
    $World.Debt += $Seconds
    return
  }
  $World.Stepping = $true
  try {
    $end = $World.Clock + $Seconds
    do {
      $to = [Math]::Min($end, (Get-SimNextDue))
      if (-not $World.Settling) { $to = [Math]::Min($to, $World.Clock + 1) }
      $World.Clock = [Math]::Max($World.Clock, $to)
      Invoke-SimDue
    } while ($World.Clock -lt $end)
  }
  finally { $World.Stepping = $false }
}

# An error in here is the bench's own; it must not look to the script like one of Windows.
function Invoke-SimDue {
  try {
    while ($true) {
      $first = $null
      foreach ($due in $World.Due) {
        if ($due.At -gt $World.Clock) { continue }
        if ($null -eq $first -or $due.At -lt $first.At -or ($due.At -eq $first.At -and $due.Order -lt $first.Order)) { $first = $due }
      }
      if ($null -eq $first) { break }
      $World.Due.Remove($first)
      $World.Debt = 0.0
      $null = & $first.Do $first.With
    }
    foreach ($watch in @($World.Watches)) {
      if (& $watch.When) {
        $World.Watches.Remove($watch)
        $null = & $watch.Do
      }
    }
  }
  catch { $null = $World.Broken.Add("$($_.Exception.Message) ($($_.InvocationInfo.PositionMessage))") }
  $World.Debt = 0.0
}

function Write-SimTrace($Who, $Text) {
  if ($World.Tracing) { $null = $World.Trace.Add(('{0,8:0.0}  {1,-12} {2}' -f ($World.Clock - $SimStart), $Who, $Text)) }
}

# ---- processes and who they belong to ----------------------------------------------------------------------------------------------------------------------

# Windows gives a number to another process soon, but not while anybody has a handle of the one that had it.
function Get-SimNewId {
  if ($World.ReusesIds) {
    foreach ($id in @($World.FreeIds)) {
      $held = $false
      foreach ($owner in $World.Owners) { if (-not $owner.Dead -and $owner.Processes.ContainsKey("$id")) { $held = $true } }
      if (-not $held) {
        $World.FreeIds.Remove($id)
        return $id
      }
    }
  }
  $World.NextId += 4
  $World.NextId
}

function New-SimProcess($Name, $ParentId, $MemoryMiB, $CommandLine) {
  $process = @{
    Name = $Name; Id = (Get-SimNewId); ParentId = $ParentId; Memory = [long]$MemoryMiB * 1MB; CommandLine = $CommandLine; Ended = $false
    # Windows keeps the time of day at which it began, as the clock showed it then.
    Created = Get-SimTimeOfDay $World.Clock
  }
  $null = $World.Processes.Add($process)
  $process
}

function Stop-SimProcess($Process) {
  if ($null -eq $Process -or $Process.Ended) { return }
  $Process.Ended = $true
  $World.Processes.Remove($Process)
  $null = $World.FreeIds.Add($Process.Id)
}

# One of Windows' own, of which nobody gets a handle.
function New-SimSystemProcess($Name, $Id) {
  $null = $World.Processes.Add(@{ Name = $Name; Id = $Id; ParentId = 0; Memory = 8KB; CommandLine = $null; Ended = $false; Created = (Get-SimTimeOfDay 0) })
}

function Get-SimProcess($Id) { foreach ($process in $World.Processes) { if ($process.Id -eq $Id) { return $process } } }

# A process that calls the seam or holds named objects: a run of the script, a follow-up, an installer.
function New-SimOwner($Name, $Process) {
  $owner = @{ Name = $Name; Process = $Process; Dead = $false; Ended = 0.0; Handles = @{}; Processes = @{}; FollowUp = $false }
  $null = $World.Owners.Add($owner)
  $owner
}

# Its end, whatever the reason: Windows closes its handles. A mutex that it still has is abandoned; an object without handles is gone.
function Close-SimOwner($Owner) {
  if ($Owner.Dead) { return }
  $Owner.Dead = $true
  $Owner.Ended = $World.Clock
  foreach ($name in @($Owner.Handles.Keys)) { Close-SimHandle $Owner $name }
  $Owner.Processes = @{}
  Stop-SimProcess $Owner.Process
}

function Close-SimHandle($Owner, $Name) {
  $object = $Owner.Handles[$Name]
  $Owner.Handles.Remove($Name)
  $object.Holders.Remove($Owner)
  if ($object.Owner -eq $Owner) {
    $object.Owner = $null
    $object.Abandoned = $true
  }
  if ($object.Holders.Count -eq 0) { $World.Objects.Remove($Name) }
}

# ---- named objects -----------------------------------------------------------------------------------------------------------------------------------------

# Makes it, or opens the one that is there. One of another account, with its own access rights, cannot be opened.
function Open-SimObject($Owner, $Name) {
  if ($Owner.Handles.ContainsKey($Name)) { return $Owner.Handles[$Name] }
  if (-not $World.Objects.ContainsKey($Name)) {
    $World.Objects[$Name] = @{ Name = $Name; Holders = New-SimList; Owner = $null; Abandoned = $false; Set = $false; Foreign = $false; Began = $World.Clock }
  }
  $object = $World.Objects[$Name]
  if ($object.Foreign) { throw (New-Object -TypeName System.UnauthorizedAccessException -ArgumentList "Access to the path '$Name' is denied.") }
  $null = $object.Holders.Add($Owner)
  $Owner.Handles[$Name] = $object
  $object
}

# For cases: somebody takes a mutex, makes an event, or does so under another account.
function Set-SimHolder($Name, $ObjectName, $Foreign) {
  $owner = New-SimOwner $Name (New-SimProcess "$Name.exe" 4 5 $Name)
  $object = Open-SimObject $owner $ObjectName
  $object.Owner = $owner
  $object.Foreign = $Foreign
  $owner
}

# Takes a mutex that nobody else has; whether that is so.
function Lock-SimMutex($Owner, $Object) {
  if ($null -ne $Object.Owner -and $Object.Owner -ne $Owner) { return $false }
  $Object.Owner = $Owner
  $Object.Abandoned = $false
  $true
}

# ---- the service control manager ---------------------------------------------------------------------------------------------------------------------------

function Get-SimRecord {
  $service = $World.Service
  if (-not $service.Exists) { return }
  $id = 0
  if ($service.State -ne 'Stopped' -and $null -ne $service.Process) { $id = $service.Process.Id }
  @{ Name = 'codedeployagent'; State = $service.State; ProcessId = $id; StartMode = $service.StartMode; PathName = $service.PathName }
}

function Set-SimState($State) {
  $World.Service.Before = Get-SimRecord
  $World.Service.State = $State
  Write-SimTrace 'Windows' "the service is $State"
  if ($State -eq 'Stopped' -and $World.Service.Deleted) {
    $World.Service.Exists = $false
    Write-SimTrace 'Windows' 'the service is gone'
  }
}

# An order to the service, from whomever. Gives Windows' code; $World.Blocks is for how long sc.exe does not come back. Lets no time pass.
function Send-SimOrder($By, $Verb) {
  $World.Blocks = 0.1
  if ($Verb -eq 'stop') { $code = Stop-SimService } else { $code = Start-SimService }
  $null = $World.Orders.Add(@{ By = $By; Verb = $Verb; Code = $code; At = $World.Clock })
  Write-SimTrace $By "sc.exe $Verb -> $code"
  $code
}

function Get-SimRefusal($Codes) {
  if ($Codes.Count -eq 0) { return 0 }
  $code = $Codes[0]
  $Codes.RemoveAt(0)
  $code
}

function Stop-SimService {
  $service = $World.Service
  if (-not $service.Exists) { return 1060 }
  if ($service.State -eq 'Stopped') { return 1062 }
  if ($service.State -ne 'Running') { return 1061 }
  $code = Get-SimRefusal $service.StopCodes
  if ($code -ne 0) { return $code }
  Stop-SimAgent $service.Agent
  if ($service.StopAnswer -eq 1053) { $World.Blocks = 30.0 }
  $service.StopAnswer
}

# A service whose process has not ended yet counts as running, although it is Stopped: then nothing is started.
function Start-SimService {
  $service = $World.Service
  if (-not $service.Exists) { return 1060 }
  if ($service.Deleted) { return 1072 }
  if ($service.StartMode -eq 'Disabled') { return 1058 }
  if ($service.State -ne 'Stopped') { return 1056 }
  if ($null -ne $service.Process -and -not $service.Process.Ended) { return 1056 }
  $code = Get-SimRefusal $service.StartCodes
  if ($code -eq 1053) {
    # It never reports to the service control manager, which gives up after 30 s and ends it.
    $service.Process = New-SimProcess 'codedeploy-agent.exe' 600 3 $service.PathName
    Set-SimState 'Start Pending'
    $World.Blocks = 30.0
    Add-SimDue ($World.Clock + 30) 'Stop-SimAttempt' $service.Process
  }
  if ($code -ne 0) { return $code }
  $World.Blocks = Start-SimAgent
  0
}

function Stop-SimAttempt($Process) {
  Stop-SimProcess $Process
  Set-SimState 'Stopped'
}

# Asks it to stop; the service goes when it has stopped, and the program with it.
function Remove-SimService($By) {
  if ($World.Service.State -ne 'Stopped') { $null = Send-SimOrder $By 'stop' }
  $World.Service.Deleted = $true
  [System.IO.File]::Delete($World.Service.Executable)
  if ($World.Service.State -eq 'Stopped') { $World.Service.Exists = $false }
  Write-SimTrace $By 'uninstalls the agent'
}

# An installation by Windows Installer, which holds its mutex for so long. Orders: it stops the agent's service first, and starts it at the end.
function Start-SimInstaller($Seconds, $Orders) {
  $installer = Set-SimHolder 'msiexec' 'Global\_MSIExecute' $false
  Write-SimTrace 'installer' 'begins'
  if ($Orders) { $null = Send-SimOrder 'installer' 'stop' }
  Add-SimDue ($World.Clock + $Seconds) 'Stop-SimInstaller' @{ Owner = $installer; Orders = $Orders }
}

# The file is in use until the service has stopped: an installer waits for that.
function Stop-SimInstaller($Installer) {
  if ($Installer.Orders -and ($World.Service.State -ne 'Stopped' -or -not $World.Service.Process.Ended)) {
    Add-SimDue ($World.Clock + 1) 'Stop-SimInstaller' $Installer
    return
  }
  if ($Installer.Orders) { $null = Send-SimOrder 'installer' 'start' }
  Close-SimOwner $Installer.Owner
  Write-SimTrace 'installer' 'has ended'
}

# An upgrade that takes the service away after so many seconds, for so many, and puts it back; without an order to start where it fails and is rolled back.
function Start-SimUpgrade($Seconds, $Without, $Starts) {
  Start-SimInstaller ($Seconds + $Without + 5) $false
  Add-SimDue ($World.Clock + $Seconds) { param($service) $service.Exists = $false } $World.Service
  Add-SimDue ($World.Clock + $Seconds + $Without) {
    param($starts)
    $World.Service.Exists = $true
    if ($starts) { $null = Send-SimOrder 'installer' 'start' }
  } $Starts
}

# Somebody restarts the service as people do: with net.exe or services.msc, which wait for the stop.
function Restart-SimService($By) {
  $null = Send-SimOrder $By 'stop'
  Add-SimDue ($World.Clock + 1) 'Complete-SimRestart' $By
}

function Complete-SimRestart($By) {
  $service = $World.Service
  if ($service.State -eq 'Stopped' -and ($null -eq $service.Process -or $service.Process.Ended)) { $null = Send-SimOrder $By 'start' }
  else { Add-SimDue ($World.Clock + 1) 'Complete-SimRestart' $By }
}

# ---- agents: their life --------------------------------------------------------------------------------------------------------------------------------------

function New-SimAgent($Plan) {
  $commandLine = $World.Service.PathName
  $agent = @{
    Kind = $Plan.Kind; Plan = $Plan; Main = (New-SimProcess 'codedeploy-agent.exe' 600 3 $commandLine); Ruby = $null; Console = $null
    # 'starting', 'checking' (v2), 'polling', 'gone'; whether CodeDeploy answers its polls; when the current one ends.
    Phase = 'starting'; Heard = $false; PollEnds = 0.0; Failures = 0; Since = $World.Clock
    Hooks = New-SimList; Stopping = $false; StopAsked = 0.0
  }
  if ($Plan.Kind -eq 'v2') { $agent.Main.Memory = [long]$Plan.MemoryMiB * 1MB }
  $World.Service.Process = $agent.Main
  $World.Service.Agent = $agent
  $null = $World.Agents.Add($agent)
  $agent
}

# The process that is the agent, and whose number stands in v1's log.
function Get-SimPoller($Agent) { if ($null -ne $Agent.Ruby) { $Agent.Ruby } else { $Agent.Main } }

# The service control manager starts an agent; gives for how long sc.exe waits.
function Start-SimAgent {
  $plan = $World.Plan
  if ($World.Plans.Count -gt 0) {
    $plan = $World.Plans[0]
    $World.Plans.RemoveAt(0)
  }
  $agent = New-SimAgent $plan
  Set-SimState 'Start Pending'
  if ($plan.Kind -eq 'v2') {
    Add-SimDue ($World.Clock + 0.3) 'Enter-SimRunning' $agent
    return 0.2
  }
  Add-SimDue ($World.Clock + $plan.Connect) 'Open-SimRuby' $agent
  Add-SimDue ($World.Clock + $plan.Connect + $plan.Pending) 'Enter-SimRunning' $agent
  $plan.Connect
}

# v1 has unpacked itself: its Ruby is the agent.
function Open-SimRuby($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  $Agent.Ruby = New-SimProcess $Agent.Plan.Ruby $Agent.Main.Id $Agent.Plan.MemoryMiB 'C:\Windows\TEMP\ocr1.tmp\bin\ruby.exe C:\Windows\TEMP\ocr1.tmp\src\winagent.rb'
  $Agent.Console = New-SimProcess 'conhost.exe' $Agent.Main.Id 6 '\??\C:\Windows\system32\conhost.exe 0x4'
}

function Enter-SimRunning($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  Set-SimState 'Running'
  $Agent.Since = $World.Clock
  $plan = $Agent.Plan
  if ($plan.DiesAfter -ge 0) { Add-SimDue ($World.Clock + $plan.DiesAfter) 'Exit-SimAgent' $Agent }
  if ($plan.Kind -eq 'v2') { Enter-SimChecks $Agent }
  elseif ($plan.Poll -is [string] -and $plan.Poll -eq 'no-metadata') {
    Write-SimLog $Agent 'INFO' 'CodeDeploy Host Agent Service: starting the agent'
    $Agent.Phase = 'polling'
    Add-SimDue ($World.Clock + 21) 'Write-SimServiceError' $Agent
  }
  else {
    Write-SimLog $Agent 'INFO' 'On Premises config file does not exist or not readable'
    Write-SimLog $Agent 'INFO' 'CodeDeploy endpoint: https://codedeploy-commands.eu-west-1.amazonaws.com'
    $Agent.Phase = 'polling'
    Add-SimDue ($World.Clock + $plan.First) 'Start-SimPoll' $Agent
  }
}

# v1 cannot even ask who it is: its service stays Running, and tries again for ever.
function Write-SimServiceError($Agent) {
  if ($Agent.Phase -eq 'gone' -or $Agent.Stopping) { return }
  Write-SimLog $Agent 'ERROR' 'CodeDeploy Host Agent Service: error during start or run: Net::OpenTimeout - execution expired - C:/Windows/TEMP/ocr1.tmp/lib/net/http.rb:879'
  Add-SimDue ($World.Clock + 25) 'Write-SimServiceError' $Agent
}

# v2 says Running before its checks; one that fails ends it, some seconds later.
function Enter-SimChecks($Agent) {
  $Agent.Phase = 'checking'
  Write-SimLog $Agent 'INFO' "Worker $($Agent.Main.Id) starting"
  Add-SimDue ($World.Clock + $Agent.Plan.Metadata) 'Exit-SimChecks' $Agent
}

function Exit-SimChecks($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  $failure = $Agent.Plan.Fails
  if ($failure -eq 'credentials') {
    Write-SimLog $Agent 'ERROR' 'Failed to load credentials: dispatch failure: timeout: HTTP connect timeout occurred after 10s: http://169.254.169.254'
  }
  else { Write-SimLog $Agent 'INFO' 'Resolved region: us-east-1' }
  if ($failure -eq 'region') { Write-SimLog $Agent 'ERROR' 'Failed to determine region' }
  if ($failure -eq 'tls') { Write-SimLog $Agent 'ERROR' 'TLS verification failed for https://codedeploy-commands.us-east-1.amazonaws.com: invalid peer certificate: UnknownIssuer' }
  if ($failure -ne '') {
    $Agent.Plan.Crashes = $false
    Add-SimDue ($World.Clock + $Agent.Plan.EndsAfterFailure) 'Exit-SimAgent' $Agent
    return
  }
  Write-SimLog $Agent 'INFO' 'TLS verification passed for https://codedeploy-commands.us-east-1.amazonaws.com'
  Write-SimLog $Agent 'INFO' "Worker $($Agent.Main.Id) entering polling loop"
  $Agent.Phase = 'polling'
  Start-SimPoll $Agent
}

# It ends by itself: by a crash, after which the service control manager may start it again, or in order.
function Exit-SimAgent($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  Write-SimTrace 'agent' "$($Agent.Main.Id) ends by itself"
  $isOfService = $World.Service.Agent -eq $Agent
  $stopWasAsked = $Agent.Stopping
  Clear-SimAgent $Agent
  if (-not $isOfService -or $World.Service.State -eq 'Stopped') { return }
  Set-SimState 'Stopped'
  if ($Agent.Plan.Crashes -and $World.Service.Recovery -gt 0 -and -not $stopWasAsked) { Add-SimDue ($World.Clock + $World.Service.Recovery) 'Restore-SimService' $null }
}

function Restore-SimService { $null = Send-SimOrder 'recovery' 'start' }

# Its processes are gone. Its hooks go on, and their tracking files stay.
function Clear-SimAgent($Agent) {
  $Agent.Phase = 'gone'
  $Agent.Heard = $false
  foreach ($process in $Agent.Main, $Agent.Ruby, $Agent.Console) { Stop-SimProcess $process }
  $World.Agents.Remove($Agent)
}

# ---- agents: polls and hooks -----------------------------------------------------------------------------------------------------------------------------------

function Get-SimPollMode($Agent) { if ($Agent.Plan.Poll -is [scriptblock]) { & $Agent.Plan.Poll } else { $Agent.Plan.Poll } }

function Start-SimPoll($Agent) {
  if ($Agent.Phase -eq 'gone' -or ($Agent.Stopping -and $Agent.PollEnds -le $World.Clock)) { return }
  $mode = Get-SimPollMode $Agent
  $Agent.Heard = $mode -eq 'good'
  $seconds = 0.3
  if ($mode -eq 'good') { $seconds = $Agent.Plan.PollSeconds }
  # Nobody answers: the agent gives up after its http_read_timeout.
  if ($mode -eq 'black-hole') { $seconds = 80.0 }
  $Agent.PollEnds = $World.Clock + $seconds
  Add-SimDue $Agent.PollEnds 'Complete-SimPoll' @{ Agent = $Agent; Mode = $mode; Seconds = $seconds }
}

function Complete-SimPoll($Poll) {
  $agent = $Poll.Agent
  if ($agent.Phase -eq 'gone') { return }
  if ($Poll.Mode -eq 'good') {
    $agent.Failures = 0
    if ($agent.Kind -eq 'v1' -and $agent.Plan.LogsPolls) { Write-SimLog $agent 'INFO' (Get-SimPollLine 200 $Poll.Seconds) }
  }
  else {
    $agent.Failures++
    Write-SimPollFailure $agent $Poll.Mode $Poll.Seconds
  }
  if ($agent.Stopping) {
    Test-SimDrained $agent
    return
  }
  # v1: 10, 13, 17, 21, ... s after a failure, up to 90.
  $pause = 0.1
  if ($Poll.Mode -ne 'good') { $pause = [Math]::Min(90.0, [Math]::Floor([Math]::Pow(1.2675, [Math]::Min($agent.Failures, 20) - 1) * 10.6)) }
  elseif ($agent.Kind -eq 'v2') { $pause = 1.0 }
  Add-SimDue ($World.Clock + $pause) 'Start-SimPoll' $agent
}

function Get-SimPollLine($Code, $Seconds) {
  '[Aws::CodeDeployCommand::Client {0} {1:0.000000} 0 retries] poll_host_command(host_identifier:"arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0")  ' -f $Code, $Seconds
}

# In the agent's words (v1: plugins/codedeploy/command_poller.rb and agent/base.rb, with a backtrace).
function Write-SimPollFailure($Agent, $Mode, $Seconds) {
  $denied = 'Aws::CodeDeployCommand::Errors::AccessDeniedException', 'User: arn:aws:sts::123456789012:assumed-role/web/i-0123456789abcdef0 is not authorized to perform: codedeploy-commands-secure:PollHostCommand'
  $poller = 'InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller'
  if ($Agent.Kind -eq 'v2') {
    Write-SimLog $Agent 'ERROR' "Error polling for host commands: service error: AccessDeniedException: $($denied[1])"
    return
  }
  if ($Mode -eq 'denied') {
    if ($Agent.Plan.LogsPolls) { Write-SimLog $Agent 'INFO' ((Get-SimPollLine 400 $Seconds).Trim() + " $($denied[0]) $($denied[1])") }
    Write-SimLog $Agent 'ERROR' "${poller}: Error polling for host commands: $($denied[0]) - $($denied[1]) - $(Get-SimBacktrace)"
    Write-SimLog $Agent 'ERROR' "${poller}: Cannot reach InstanceService: $($denied[0]) - $($denied[1])"
  }
  elseif ($Mode -eq 'no-credentials') {
    Write-SimLog $Agent 'ERROR' "${poller}: Error polling for host commands: Aws::Errors::MissingCredentialsError - unable to sign request without credentials set - $(Get-SimBacktrace)"
    Write-SimLog $Agent 'ERROR' "${poller}: Missing credentials - please check if this instance was started with an IAM instance profile"
  }
  elseif ($Mode -eq 'unreachable' -or $Mode -eq 'black-hole') {
    Write-SimLog $Agent 'ERROR' "${poller}: Error polling for host commands: Seahorse::Client::NetworkingError - Failed to open TCP connection - $(Get-SimBacktrace)"
    Write-SimLog $Agent 'ERROR' "${poller}: Cannot reach InstanceService: Seahorse::Client::NetworkingError - Failed to open TCP connection"
  }
  else { throw "polls do not go '$Mode'" }
}

function Get-SimBacktrace { (1..20 | ForEach-Object { "C:/Windows/TEMP/ocr1.tmp/gemhome/gems/aws-sdk-core/lib/plugins/handler.rb:${_}:in ``call'" }) -join "`n" }

# A line in the agent's log: v1's in local time and with the number of its process, v2's in UTC. At: so many seconds since boot.
function Write-SimLog($Agent, $Level, $Text) { Add-SimLogLine $Agent $Level $Text $World.Clock }

function Add-SimLogLine($Agent, $Level, $Text, $At) {
  # Nobody reads it any more when all runs are over.
  if ($World.Settling) { return }
  Write-SimTrace 'log' ("$Level $Text" -split "`n")[0]
  if (-not $World.HasLog) { return }
  $time = Get-SimTimeOfDay $At
  if ($Agent.Kind -eq 'v2') {
    $file = Join-Path $World.LogFolder 'codedeploy-agent.log'
    $line = '{0:yyyy-MM-dd HH:mm:ss} {1,5} {2}' -f $time, $Level, $Text
  }
  else {
    $file = Join-Path $World.LogFolder 'codedeploy-agent-log.txt'
    $line = '{0:yyyy-MM-ddTHH:mm:ss} {1,-5} [codedeploy-agent({2})]: {3}' -f $time.ToLocalTime(), $Level, (Get-SimPoller $Agent).Id, $Text
  }
  [System.IO.File]::AppendAllText($file, "$line`r`n")
  [System.IO.File]::SetLastWriteTimeUtc($file, $time)
}

# A lifecycle event on the agent: its tracking file, and a hook below its process, for so long.
function Start-SimHook($Agent, $Deployment, $Seconds, $Fails) {
  $file = New-SimTrackingFile $Deployment 0
  $process = New-SimProcess 'cmd.exe' (Get-SimPoller $Agent).Id 4 "cmd.exe /c C:\ProgramData\Amazon\CodeDeploy\$Deployment\hook.bat"
  $hook = @{ Agent = $Agent; File = $file; Process = $process; Fails = $Fails; Deployment = $Deployment; Began = $World.Clock }
  $null = $Agent.Hooks.Add($hook)
  Write-SimTrace 'agent' "a hook of $Deployment begins, for $Seconds s"
  Add-SimDue ($World.Clock + $Seconds) 'Stop-SimHook' $hook
}

function Stop-SimHook($Hook) {
  Stop-SimProcess $Hook.Process
  $agent = $Hook.Agent
  if ($agent.Phase -eq 'gone') { return }
  $agent.Hooks.Remove($Hook)
  [System.IO.File]::Delete($Hook.File)
  Write-SimTrace 'agent' "the hook of $($Hook.Deployment) has ended"
  if ($Hook.Fails) {
    # What the hook printed stands in the report to CodeDeploy, and that in the log.
    Write-SimLog $agent 'INFO' ('[Aws::CodeDeployCommand::Client 200 0.061 0 retries] put_host_command_complete(command_status:"Failed",diagnostics:{format:"JSON",payload:"{' +
      '\"log\":\"CommandPoller: Cannot reach InstanceService: Error polling for host commands: CommandPoller: Missing credentials\"}"},host_command_identifier:"WyJj...")')
    Write-SimLog $agent 'ERROR' ("InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller: Error during perform: InstanceAgent::Plugins::CodeDeployPlugin::ScriptError - " +
      "Script at specified location: hook.bat failed with exit code 1 - $(Get-SimBacktrace)")
  }
  Test-SimDrained $agent
}

# The file that the agent keeps while a lifecycle event runs; so many seconds old.
function New-SimTrackingFile($Deployment, $Age) {
  $null = [System.IO.Directory]::CreateDirectory($World.Tracking)
  $file = Join-Path $World.Tracking $Deployment
  [System.IO.File]::WriteAllText($file, 'eyJhbGciOiJI')
  [System.IO.File]::SetLastWriteTimeUtc($file, (Get-SimTimeOfDay ($World.Clock - $Age)))
  $file
}

# ---- agents: their stop ------------------------------------------------------------------------------------------------------------------------------------------

# v1's service is Stop Pending from now on; v2's stays Running. Both finish their poll and their hooks.
function Stop-SimAgent($Agent) {
  if ($Agent.Stopping) { return }
  $Agent.Stopping = $true
  $Agent.StopAsked = $World.Clock
  if ($Agent.Kind -eq 'v1') {
    Set-SimState 'Stop Pending'
    Write-SimLog $Agent 'INFO' 'CodeDeploy Instance Agent Service: stopping the agent'
  }
  Add-SimDue ($World.Clock + $World.MaxWait) 'Test-SimDrained' $Agent
  Add-SimDue ([Math]::Max($World.Clock + 1, $Agent.PollEnds)) 'Test-SimDrained' $Agent
}

function Test-SimDrained($Agent) {
  if (-not $Agent.Stopping -or $Agent.Phase -eq 'gone' -or $Agent.Plan.Deadlock) { return }
  $waited = $World.Clock - $Agent.StopAsked
  if ($Agent.PollEnds -gt $World.Clock) { return }
  if ($Agent.Hooks.Count -gt 0 -and $waited -lt $World.MaxWait) { return }
  if ($Agent.Phase -eq 'stopped') { return }
  $Agent.Phase = 'stopped'
  $Agent.Heard = $false
  $pause = 0.5
  # It sleeps between two polls, and sees the stop after that.
  if ($Agent.Kind -eq 'v2') { $pause = $Agent.Plan.Between }
  Add-SimDue ($World.Clock + $pause) 'Exit-SimService' $Agent
}

# Stopped; the processes end some seconds later.
function Exit-SimService($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  if ($World.Service.Agent -eq $Agent) { Set-SimState 'Stopped' }
  $linger = $Agent.Plan.Linger
  if ($Agent.Kind -eq 'v2') { $linger = 0.2 }
  Add-SimDue ($World.Clock + $linger) 'Exit-SimMain' $Agent
}

# v1's Ruby may outlive the process of the service, which alone keeps the service from being started.
function Exit-SimMain($Agent) {
  if ($Agent.Phase -eq 'gone') { return }
  if ($null -eq $Agent.Ruby -or $Agent.Plan.RubyLingers -le 0) {
    Clear-SimAgent $Agent
    return
  }
  Stop-SimProcess $Agent.Main
  Stop-SimProcess $Agent.Console
  Add-SimDue ($World.Clock + $Agent.Plan.RubyLingers) 'Clear-SimAgent' $Agent
}

# ---- for cases: an agent that runs already -------------------------------------------------------------------------------------------------------------------------

# It has run for so many seconds, and polls well unless its plan says otherwise.
function Set-SimAgent($Changes, $Age) {
  $plan = New-SimPlan $Changes
  if (-not $Changes.ContainsKey('MemoryMiB')) { $plan.MemoryMiB = 110 }
  $now = $World.Clock
  $World.Clock = $now - $Age
  $agent = New-SimAgent $plan
  if ($plan.Kind -eq 'v1') { Open-SimRuby $agent }
  if ($plan.Kind -eq 'v1') { Add-SimLogLine $agent 'INFO' 'CodeDeploy endpoint: https://codedeploy-commands.eu-west-1.amazonaws.com' $World.Clock }
  else {
    Add-SimLogLine $agent 'INFO' "Worker $($agent.Main.Id) starting" $World.Clock
    Add-SimLogLine $agent 'INFO' "Worker $($agent.Main.Id) entering polling loop" $World.Clock
  }
  $World.Clock = $now
  $World.Service.State = 'Running'
  $World.Service.Before = Get-SimRecord
  $agent.Phase = 'polling'
  $mode = Get-SimPollMode $agent
  if ($mode -eq 'good') {
    # In the middle of a long poll, of which the last one ended 20 s ago.
    if ($plan.Kind -eq 'v1' -and $plan.LogsPolls) { Add-SimLogLine $agent 'INFO' (Get-SimPollLine 200 45.07) ($now - 20) }
    $agent.Heard = $true
    $agent.PollEnds = $now + $plan.PollSeconds - 20
    Add-SimDue $agent.PollEnds 'Complete-SimPoll' @{ Agent = $agent; Mode = $mode; Seconds = $plan.PollSeconds }
  }
  elseif ($mode -eq 'no-metadata') { Add-SimDue ($now + 5) 'Write-SimServiceError' $agent }
  else {
    # It has failed for long, and tries again each 90 s.
    $agent.Failures = 12
    Write-SimPollFailure $agent $mode 0.3
    Add-SimDue ($now + 30) 'Start-SimPoll' $agent
  }
  if ($plan.DiesAfter -ge 0) { Add-SimDue ($now + $plan.DiesAfter) 'Exit-SimAgent' $agent }
  $agent
}

# v2 is installed instead: one process, and a log of its own.
function Set-SimKind2 {
  $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12 }
  $World.Service.PathName = '"' + $World.Service.Executable + '" run-as-service'
  [System.IO.File]::WriteAllText((Join-Path (Join-Path (Join-Path $World.ProgramData 'Amazon') 'CodeDeploy') '.version'), "agent_version: 2.1.0`n")
}

function Set-SimConfiguration($Text) {
  [System.IO.File]::WriteAllText((Join-Path (Join-Path (Join-Path $World.ProgramData 'Amazon') 'CodeDeploy') 'conf.yml'), $Text)
}

# The management service fails: Of 'service' or 'processes', How (see seam.ps1), the next Count questions, after a condition holds.
function Add-SimTrouble($Of, $How, $Count, $When) {
  $null = $World.Troubles.Add(@{ Of = $Of; How = $How; Count = $Count; When = $When; Name = '' })
}

# ---- follow-ups --------------------------------------------------------------------------------------------------------------------------------------------------

# A process of its own: the script's functions and variables once more, in a module, so that it sees nothing of the run that started it.
function Open-SimFollowUp($Arguments) {
  $name = "follow-up $($World.FollowUps.Count + 1)"
  $owner = New-SimOwner $name (New-SimProcess 'powershell.exe' 4 60 "powershell.exe -File restart-agent.ps1 follow-up $Arguments")
  $owner.FollowUp = $true
  $followUp = @{ Owner = $owner; Module = (New-Object -TypeName System.Management.Automation.PSModuleInfo -ArgumentList $true) }
  $null = $World.FollowUps.Add($followUp)
  Write-SimTrace $name 'has come up'
  try {
    . $followUp.Module {
      param($SimWorld, $SimOwner, $SimArguments)
      # What it was not given: it has no parameters.
      $TriggeredAt = $null; $SentAt = $null; $BusyWaitSeconds = $null; $MinMemoryMiB = $null
      $World = $SimWorld
      . $World.Text
      . (Join-Path $World.Bench 'world.ps1')
      . (Join-Path $World.Bench 'seam.ps1')
      $SimMe = $SimOwner
      $Began = Get-Now
      $SimState = New-FollowUp ($SimArguments -split ' ')
    } $World $owner $Arguments
  }
  catch {
    # Its process ends with that, as the real one does.
    Write-SimTrace $name "fails: $($_.Exception.Message)"
    Close-SimOwner $owner
    return
  }
  Add-SimDue ($World.Clock + $World.Debt + 2) 'Step-SimFollowUp' $followUp
}

# One turn of its loop, after its wait.
function Step-SimFollowUp($FollowUp) {
  if ($FollowUp.Owner.Dead) { return }
  try { $over = & $FollowUp.Module { (Test-SignalSet $FollowUpName) -or (Step-FollowUp $SimState) } }
  catch {
    Write-SimTrace $FollowUp.Owner.Name "fails: $($_.Exception.Message)"
    $over = $true
  }
  if (@($over)[-1]) {
    Write-SimTrace $FollowUp.Owner.Name 'has ended'
    Close-SimOwner $FollowUp.Owner
  }
  else { Add-SimDue ($World.Clock + $World.Debt + 2) 'Step-SimFollowUp' $FollowUp }
}

function Get-SimFollowUps { @($World.FollowUps | Where-Object { -not $_.Owner.Dead }) }

# A stop that is ordered now would do this.
function Add-SimHarm {
  $agent = $World.Service.Agent
  # One that stops already is not hurt by being asked once more.
  if ($World.Service.State -eq 'Running' -and $null -ne $agent -and -not $agent.Stopping) {
    foreach ($hook in $agent.Hooks) {
      $null = $World.Harm.Add(@{ Kind = 'hook'; Text = "the stop was ordered while $($hook.Deployment) runs a hook"; Age = $World.Clock - $hook.Began })
    }
  }
  $installer = $World.Objects['Global\_MSIExecute']
  if ($null -ne $installer) { $null = $World.Harm.Add(@{ Kind = 'installer'; Text = 'the stop was ordered while an installer works'; Age = $World.Clock - $installer.Began }) }
  if (@(Get-SimFollowUps).Count -eq 0) { $null = $World.Harm.Add(@{ Kind = 'follow-up'; Text = 'the stop was ordered while no follow-up lives'; Age = 0 }) }
}
