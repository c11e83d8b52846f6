# The cases: each makes a Windows, runs the script, and says what must come of it. In every case the promises of judge.ps1 hold besides.

$SimCases = @()

# Name, and what differs from an idle host with v1 on which nothing special is expected:
#   World       makes it; Earlier: the parameters of runs before; Between: what happens after each of them; During: what is to happen in the run that counts
#   Parameters  of that run; Kill: a condition at which Systems Manager kills it
#   Code, Word, Detail (a pattern), Orders (as "stop 0, start 0", of the run alone), State, Process ('same', 'new', 'any'), FollowUp (whether one lives when the run ends)
#   After, AfterProcess   the service 3 hours later; Dies: the agent that was proven is planned to go; Waive: promises that this case breaks on purpose
#   Also        gives further problems
function New-SimCase($Name, $Differences) {
  $case = @{
    Name = $Name; World = { Set-SimAgent @{} 86400 }; Earlier = @(); Between = $null; During = $null; Parameters = @{}; Kill = $null
    Code = 0; Word = $null; Detail = $null; Orders = $null; State = $null; Process = $null; FollowUp = $null
    After = 'Running'; AfterProcess = $null; Dies = $false; Waive = @(); Also = $null
    # Of a drawn world (weather.ps1): what was drawn; it may end before it is killed.
    Drawn = $null; MayEnd = $false
  }
  foreach ($key in @($Differences.Keys)) {
    if (-not $case.ContainsKey($key)) { throw "a case has no $key" }
    $case[$key] = $Differences[$key]
  }
  $case
}
function Add-Case($Name, $Differences) { $script:SimCases += New-SimCase $Name $Differences }

# ---- conditions and happenings that cases share ----------------------------------------------------------------------------------------------------------

function Get-SimOrders($By, $Verb) { @($World.Orders | Where-Object { $_.By -like $By -and $_.Verb -eq $Verb }) }
function Test-SimOrdered($Verb) { @(Get-SimOrders 'script' $Verb).Count -gt 0 }
function Test-SimFollowUpCame { @(Get-SimFollowUps).Count -gt 0 }
# A follow-up has been told that the stop is asked for: the last moment before the order.
function Test-SimAsked { @($World.Objects.Keys | Where-Object { $_ -like 'Global\codedeploy-agent-restart-follow-up-*' -and $World.Objects[$_].Set }).Count -gt 0 }
# The service was stopped for the run, and no process of the old agent is left.
function Test-SimOldIsGone { (Test-SimOrdered 'stop') -and $World.Agents.Count -eq 0 }
function Test-SimStopped { (Test-SimOrdered 'stop') -and $World.Service.State -eq 'Stopped' }
# The agent that the run started is up.
function Test-SimNewRuns { (Test-SimOrdered 'start') -and $World.Service.State -eq 'Running' }

# A lifecycle event of so many seconds begins in the last moment; and what else happens so long after that.
function Add-SimRace($Seconds) { Add-SimWhen { Test-SimAsked } ([scriptblock]::Create("Start-SimHook `$World.Service.Agent 'd-RACE' $Seconds `$false")) }
function Add-SimAfterAsking($Seconds, $Do) { Add-SimWhen { Test-SimAsked } ([scriptblock]::Create("Add-SimLater $Seconds {$Do}")) }
function Add-SimInProof($Seconds, $Do) { Add-SimWhen { Test-SimNewRuns } ([scriptblock]::Create("Add-SimLater $Seconds {$Do}")) }
function Stop-SimFollowUp { foreach ($followUp in @(Get-SimFollowUps)) { Close-SimOwner $followUp.Owner } }
# Somebody has a named object for so many seconds.
function Add-SimHolder($ObjectName, $Foreign, $Seconds) {
  $holder = Set-SimHolder 'somebody' $ObjectName $Foreign
  Add-SimDue ($World.Clock + $Seconds) 'Close-SimOwner' $holder
}
# Handles keep a process's number from being given away: here nobody holds any.
function Clear-SimProcessHandles { foreach ($owner in $World.Owners) { $owner.Processes = @{} } }

$SimLock = 'Global\codedeploy-agent-restart'
$SimEvent = 'Global\codedeploy-agent-restart-follow-up'
# As the function gives them: the deployment ended 10 minutes before the command was sent.
$SimFresh = @{ TriggeredAt = '1790000000'; SentAt = '1790000600' }
$SimPatient = @{ BusyWaitSeconds = '120' }

# ---- rights, and what is there ---------------------------------------------------------------------------------------------------------------------------

Add-Case 'idle' @{ Word = 'restarted'; Orders = 'stop 0, start 0' }
Add-Case 'idle, without any patience' @{ Word = 'restarted'; Parameters = @{ BusyWaitSeconds = '0' } }
Add-Case 'idle, a poll that lasts 80 s' @{ World = { Set-SimAgent @{ PollSeconds = 80 } 86400 }; Word = 'restarted' }
Add-Case 'no administrator' @{
  World = { Set-SimAgent @{} 86400; $World.Administrator = $false }
  Code = 11; Word = 'not-root'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'no service' @{
  World = { $World.Service.Exists = $false; [System.IO.File]::Delete($World.Service.Executable) }
  Code = 10; Word = 'not-installed'; Orders = ''; After = 'gone'
}

# ---- the management service ------------------------------------------------------------------------------------------------------------------------------

Add-Case 'the question for the service fails twice' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'throw' 2 $null }; Word = 'restarted' }
Add-Case 'the question for the processes fails twice' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'throw' 2 $null }; Word = 'restarted' }
Add-Case 'the question for the service gets no answer in time, once' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'hang' 1 $null }; Word = 'restarted'
}
Add-Case 'the question for the processes gets no answer in time, once' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'hang' 1 $null }; Word = 'restarted'
}
Add-Case 'the question for the service fails each time' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'throw' 100000 $null }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'the question for the processes fails each time' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'throw' 100000 $null }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'the question for the service fails each time after the stop' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'throw' 100000 { Test-SimOrdered 'stop' } }
  Code = 34; Word = 'draining'; Detail = 'RPC server'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'the question for the processes fails each time after the stop' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'throw' 100000 { Test-SimOrdered 'stop' } }
  Code = 34; Word = 'draining'; Detail = 'RPC server'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'no question gets an answer in time after the stop' @{
  World = { Set-SimAgent @{} 86400; foreach ($of in 'service', 'processes') { Add-SimTrouble $of 'hang' 100000 { Test-SimOrdered 'stop' } } }
  Code = 34; Word = 'draining'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'the question for the service fails each time after the start' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'throw' 100000 { Test-SimNewRuns } }; Code = 33, 34; Detail = 'RPC server'; AfterProcess = 'new'
}
Add-Case 'the question for the processes fails each time after the start' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'throw' 100000 { Test-SimNewRuns } }; Code = 33, 34; Detail = 'RPC server'; AfterProcess = 'new'
}
Add-Case 'the list of processes lacks the agent, once' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'leave-out' 1 $null }; Word = 'restarted' }
Add-Case 'the list of processes lacks the agent each time' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'leave-out' 100000 $null }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'the list of processes is empty, once' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'empty' 1 $null }; Word = 'restarted' }
Add-Case 'the list of processes is empty each time' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'empty' 100000 $null }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'the list of processes is empty once, while the old ones still end' @{
  World = { Set-SimAgent @{ Linger = 12 } 86400; Add-SimTrouble 'processes' 'empty' 1 { Test-SimStopped } }; Word = 'restarted'
}
Add-Case 'no process has a moment of creation' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'processes' 'no-date' 100000 $null }; Word = 'restarted' }
Add-Case 'the service is not told, once, after the stop' @{
  World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'empty' 1 { Test-SimOrdered 'stop' } }; Code = 0, 10, 32; AfterProcess = 'new'
}
Add-Case 'each answer about the service takes 5 s' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'slow' 100000 $null }; Word = 'restarted' }
Add-Case 'each answer takes 5 s' @{
  World = { Set-SimAgent @{} 86400; foreach ($of in 'service', 'processes') { Add-SimTrouble $of 'slow' 100000 $null } }; Word = 'restarted'
}
Add-Case 'no question gets an answer in time after the start' @{
  World = { Set-SimAgent @{} 86400; foreach ($of in 'service', 'processes') { Add-SimTrouble $of 'hang' 100000 { Test-SimNewRuns } } }
  Code = 33, 34; AfterProcess = 'new'
}
Add-Case 'each second list of processes is empty after the start, and the old Ruby stays for ever' @{
  World = {
    Set-SimAgent @{ RubyLingers = 1000000 } 86400
    $World.Lists = 0
    Add-SimTrouble 'processes' 'empty' 100000 { (Test-SimNewRuns) -and (++$World.Lists) % 2 -eq 0 }
  }
  Waive = 'beside'; Code = 31; Word = 'old-agent-survived'; Process = 'new'; After = 'any'
}
Add-Case 'a stale answer after the stop' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'stale' 2 { Test-SimStopped } }; Word = 'restarted' }
Add-Case 'a stale answer after the start' @{ World = { Set-SimAgent @{} 86400; Add-SimTrouble 'service' 'stale' 2 { Test-SimNewRuns } }; Word = 'restarted' }

# ---- two runs --------------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'the lock is held' @{ World = { Set-SimAgent @{} 86400; Add-SimHolder $SimLock $false 500 }; Code = 22; Word = 'restart-running'; AfterProcess = 'same' }
Add-Case 'the lock is held, and is freed in the wait' @{ World = { Set-SimAgent @{} 86400; Add-SimHolder $SimLock $false 20 }; Word = 'restarted' }
Add-Case 'the lock is of another account' @{
  World = { Set-SimAgent @{} 86400; Add-SimHolder $SimLock $true 500 }; Code = 22; Word = 'restart-running'; AfterProcess = 'same'
}
Add-Case 'the lock is abandoned' @{
  World = {
    Set-SimAgent @{} 86400
    $killed = Set-SimHolder 'killed-run' $SimLock $false
    # A third run waits for it, so that it still exists.
    $third = New-SimOwner 'third-run' (New-SimProcess 'powershell.exe' 4 60 'powershell.exe')
    $null = Open-SimObject $third $SimLock
    Close-SimOwner $killed
    Add-SimDue ($World.Clock + 500) 'Close-SimOwner' $third
  }
  Word = 'restarted'
}
Add-Case 'the follow-up of an earlier run lives' @{
  World = { Set-SimAgent @{} 86400; Add-SimHolder $SimEvent $false 500 }; Code = 34; Word = 'draining'; Orders = ''; Process = 'same'; AfterProcess = 'same'
}
Add-Case 'the follow-up of an earlier run under another account lives' @{
  World = { Set-SimAgent @{} 86400; Add-SimHolder $SimEvent $true 500 }; Code = 34; Word = 'draining'; Orders = ''; Process = 'same'; AfterProcess = 'same'
}
Add-Case 'two runs at once: the second waits for the lock, and then finds a fresh agent' @{
  Earlier = @(@{}); During = { Add-SimHolder $SimLock $false 10 }; Parameters = $SimFresh; Word = 'already-restarted'; Orders = ''
}
Add-Case 'v2 drains after an earlier run, whose follow-up waits' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400; Add-SimRace 900 }
  Earlier = @(@{}); Code = 34; Word = 'draining'; Detail = 'new agent'; Orders = ''; Process = 'same'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'v2 drains after an earlier run, whose follow-up starts it in the wait of the next' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400; Add-SimRace 165 }; Earlier = @(@{}); Parameters = @{ BusyWaitSeconds = '200' }; Waive = 'memory'
}

# ---- fresh, or small -------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'fresh by the mark' @{ Earlier = @(@{}); Between = { Step-SimTime 100 }; Parameters = $SimFresh; Word = 'already-restarted'; Orders = '' }
Add-Case 'the mark is older than the deployment' @{ Earlier = @(@{}); Between = { Step-SimTime 900 }; Parameters = $SimFresh; Word = 'restarted' }
Add-Case 'a mark, and no moments given' @{ Earlier = @(@{}); Between = { Step-SimTime 100 }; Word = 'restarted' }
Add-Case 'the registry cannot be written: the next run restarts it once more' @{
  World = { Set-SimAgent @{} 86400; $World.HasRegistry = $false }; Earlier = @(@{}); Parameters = $SimFresh; Word = 'restarted'
}
Add-Case 'somebody replaced the marked agent since' @{
  Earlier = @(@{}); Between = { Restart-SimService 'operator'; Step-SimTime 200 }; Parameters = $SimFresh; Word = 'restarted'
}
Add-Case 'the marked agent died, and the next one got its numbers' @{
  World = { Set-SimAgent @{} 86400; $World.Service.Recovery = 1 }
  Earlier = @(@{}); Between = { $World.ReusesIds = $true; $World.FreeIds.Clear(); Exit-SimAgent $World.Service.Agent; Step-SimTime 200 }
  Parameters = $SimFresh; Word = 'restarted'
}
Add-Case 'fresh, and dies in the proof, and so does each one after it' @{
  World = { Set-SimAgent @{} 86400; $null = $World.Plans.Add((New-SimPlan @{ DiesAfter = 60 })); $World.Plan = New-SimPlan @{ DiesAfter = 4 } }
  Earlier = @(@{}); Parameters = $SimFresh; Code = 32; Word = 'agent-down'; After = 'Stopped'
}
Add-Case 'fresh, and dies in the proof, the next one lives' @{
  World = { Set-SimAgent @{} 86400; $null = $World.Plans.Add((New-SimPlan @{ DiesAfter = 60 })) }; Earlier = @(@{}); Parameters = $SimFresh; Word = 'started'
}
Add-Case 'fresh, and deaf since' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Poll = { if ($World.Clock -gt $SimStart + 200) { 'denied' } else { 'good' } } } }
  Earlier = @(@{}); Between = { Step-SimTime 300 }
  Parameters = $SimFresh; Code = 33; Word = 'agent-unhealthy'; Detail = 'AccessDenied'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'the whole host is younger than the deployment' @{
  World = { $World.Clock = 200.0; Set-SimAgent @{} 150 }; Parameters = $SimFresh; Word = 'already-restarted'; Orders = ''
}
Add-Case 'the whole host is younger than the deployment, and the agent deaf all along' @{
  World = { $World.Clock = 200.0; Set-SimAgent @{ Poll = 'denied' } 150 }
  Parameters = $SimFresh; Code = 33; Word = 'agent-unhealthy'; Detail = 'AccessDenied'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'health alone is asked for' @{ Parameters = @{ TriggeredAt = '1'; SentAt = '1790000000' }; Word = 'already-restarted'; Orders = '' }
Add-Case 'health alone is asked for, and nothing runs' @{
  World = {}; Parameters = @{ TriggeredAt = '1'; SentAt = '1790000000' }; Word = 'started'; Orders = 'start 0'
}
Add-Case 'no agent counts as fresh' @{ Earlier = @(@{}); Parameters = @{ TriggeredAt = '0'; SentAt = '0' }; Word = 'restarted' }
Add-Case 'sent before the deployment ended' @{ Earlier = @(@{}); Parameters = @{ TriggeredAt = '1790000600'; SentAt = '1790000000' }; Word = 'restarted' }
Add-Case 'a mark that is none' @{
  World = { Set-SimAgent @{} 86400; $World.Marks['Started'] = 'x'; $World.Marks['Stopping'] = "$([char]0xFC) 1 2" }; Parameters = $SimFresh; Word = 'restarted'
}
Add-Case 'small' @{ Parameters = @{ MinMemoryMiB = '200' }; Word = 'below-threshold'; Orders = '' }
Add-Case 'small, and deaf' @{ World = { Set-SimAgent @{ Poll = 'no-credentials' } 86400 }; Parameters = @{ MinMemoryMiB = '200' }; Word = 'restarted' }
Add-Case 'small, while a hook holds 500 MiB' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-BIG' 300 $false; $agent.Hooks[0].Process.Memory = 500MB }
  Parameters = @{ MinMemoryMiB = '200' }; Word = 'below-threshold'; Orders = ''
}
Add-Case 'its rubyw.exe holds 300 MiB, and 200 is the least' @{
  World = { Set-SimAgent @{ Ruby = 'rubyw.exe'; MemoryMiB = 300 } 86400; $World.Plan = New-SimPlan @{ Ruby = 'rubyw.exe' } }
  Parameters = @{ MinMemoryMiB = '200' }; Word = 'restarted'
}

# ---- a lifecycle event -----------------------------------------------------------------------------------------------------------------------------------

Add-Case 'a hook runs all the time' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-LONG' 600 $false }
  Code = 20; Word = 'busy'; Detail = 'd-LONG'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'a hook ends in the wait' @{ World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-SHORT' 15 $false }; Word = 'restarted' }
Add-Case 'hook after hook, with 2 s between two' @{
  World = { Set-SimAgent @{} 86400; foreach ($number in 0..100) { Add-SimLater (8.2 * $number) { Start-SimHook $World.Service.Agent 'd-MANY' 6 $false } } }
  Code = 20; Word = 'busy'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'a hook begins while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Start-SimHook $World.Service.Agent 'd-LATE' 400 $false } }
  Code = 20; Word = 'busy'; Detail = 'd-LATE'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'a short hook begins while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Start-SimHook $World.Service.Agent 'd-LATE' 10 $false } }; Word = 'restarted'
}
Add-Case 'a hook of 40 minutes begins in the last moment' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 2400 }
  Waive = 'hook'; Code = 34; Word = 'draining'; Detail = 'new agent'; State = 'Stop Pending'; Process = 'same'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'a hook of 40 minutes begins in the last moment, v2' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400; Add-SimRace 2400 }
  Waive = 'hook'; Code = 34; Word = 'draining'; Detail = 'new agent'; State = 'Running'; Process = 'same'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'a hook of 40 s begins in the last moment' @{ World = { Set-SimAgent @{} 86400; Add-SimRace 40 }; Waive = 'hook'; Word = 'restarted' }
Add-Case 'a tracking file that is older than a day' @{ World = { Set-SimAgent @{} 200000; New-SimTrackingFile 'd-OLD' 90000 }; Word = 'restarted' }
Add-Case 'the folder of tracking files cannot be read, once' @{ World = { Set-SimAgent @{} 86400; $World.Vanishing = 1 }; Word = 'restarted' }
Add-Case 'the folder of tracking files can never be read' @{
  World = { Set-SimAgent @{} 86400; $World.Vanishing = 100000 }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'an agent that died left its tracking file' @{ World = { New-SimTrackingFile 'd-DEAD' 600 }; Word = 'started'; Orders = 'start 0' }
Add-Case 'a hook that fails says nothing of polls' @{
  World = { Set-SimAgent @{} 86400; foreach ($seconds in 10, 20) { Add-SimInProof $seconds { Start-SimHook $World.Service.Agent 'd-FAIL' 5 $true } } }
  Word = 'restarted'
}

# ---- the configuration -----------------------------------------------------------------------------------------------------------------------------------

Add-Case 'the shipped configuration, with a root that is relative to ProgramData' @{
  World = {
    Set-SimConfiguration "---`n:log_aws_wire: false`n:log_dir: 'Amazon/CodeDeploy/log'`n:root_dir: 'Amazon/CodeDeploy'`n:verbose: false`n"
    $agent = Set-SimAgent @{} 86400
    Start-SimHook $agent 'd-ROOT' 600 $false
  }
  Code = 20; Word = 'busy'; Detail = 'd-ROOT'; Orders = ''
}
Add-Case 'the shipped configuration, idle' @{
  World = {
    Set-SimConfiguration "---`r`n:log_aws_wire: false`r`n:log_dir: 'Amazon/CodeDeploy/log'`r`n:root_dir: 'Amazon/CodeDeploy'`r`n:verbose: false`r`n"
    Set-SimAgent @{} 86400
  }
  Word = 'restarted'; Also = { param($Seen) if ($Seen.Run.Lines[0] -match 'no poll was seen') { 'its log was not found' } }
}
Add-Case 'v2 reads a relative root from the folder of Windows' @{
  World = {
    Set-SimKind2
    Set-SimConfiguration ":root_dir: 'Amazon/CodeDeploy'`n"
    $World.Tracking = Join-Path (Join-Path (Join-Path $World.System 'Amazon') 'CodeDeploy') 'ongoing-deployment'
    $agent = Set-SimAgent @{ Kind = 'v2' } 86400
    Start-SimHook $agent 'd-ROOT' 600 $false
  }
  Code = 20; Word = 'busy'; Detail = 'd-ROOT'; Orders = ''
}
# The agent reads YAML. ROOT is where its folder is (ESCAPED as YAML has it between double quotes), ELSEWHERE where it is not.
foreach ($SimForm in ":root_dir: ELSEWHERE`n:root_dir: 'ROOT'", ":root_dir: ELSEWHERE`nroot_dir: ELSEWHERE`n:root_dir: ROOT", ":'root_dir': ROOT", ':"root_dir": "ESCAPED"', "root_dir: ROOT",
  ':root_dir: ROOT # here', ":root_dir : 'ROOT'   # here", "# :root_dir: ELSEWHERE`n`n:verbose: true`n:root_dir: ROOT", "---`n:root_dir: ROOT`n---`n:root_dir: ELSEWHERE",
  "  :root_dir: ROOT`n  :verbose: true", ":root_dir: ROOT`n:on_premises:`n  :root_dir: ELSEWHERE") {
  $SimEscaped = $SimForm.Replace("'", "''")
  Add-Case ('a hook below: ' + ($SimForm -replace "`n", ' / ')) @{
    World = [scriptblock]::Create("
      `$root = Join-Path `$World.Folder 'root'
      Set-SimConfiguration ('$SimEscaped'.Replace('ROOT', `$root).Replace('ESCAPED', `$root.Replace('\', '\\')).Replace('ELSEWHERE', (Join-Path `$World.Folder 'elsewhere')) + [char]10)
      `$World.Tracking = Join-Path `$root 'ongoing-deployment'
      `$agent = Set-SimAgent @{} 86400
      Start-SimHook `$agent 'd-ROOT' 600 `$false")
    Code = 20; Word = 'busy'; Detail = 'd-ROOT'; Orders = ''
  }
}
foreach ($SimForm in ":here: &here C:\x`n:root_dir: *here", ':root_dir: &here C:\x', '{ root_dir: C:\x }', ":root_dir: >`n  C:\x", ':root_dir: [a]') {
  Add-Case ('not to be read for certain: ' + ($SimForm -replace "`n", ' / ')) @{
    World = [scriptblock]::Create("Set-SimConfiguration '$SimForm'; Set-SimAgent @{} 86400"); Code = 12; Word = 'preflight-failed'; Detail = 'conf.yml'; Orders = ''; AfterProcess = 'same'
  }
}
Add-Case 'the folder for tracking files has another name' @{
  World = {
    Set-SimConfiguration ":ongoing_deployment_tracking: 'running'`n"
    $World.Tracking = Join-Path (Join-Path (Join-Path $World.ProgramData 'Amazon') 'CodeDeploy') 'running'
    $agent = Set-SimAgent @{} 86400
    Start-SimHook $agent 'd-NAME' 600 $false
  }
  Code = 20; Word = 'busy'; Detail = 'd-NAME'; Orders = ''
}
Add-Case 'the log is elsewhere' @{
  World = {
    $World.LogFolder = Join-Path $World.Folder 'logs'
    $null = [System.IO.Directory]::CreateDirectory($World.LogFolder)
    Set-SimConfiguration ":log_dir: '$($World.LogFolder)'`n"
    Set-SimAgent @{} 86400
  }
  Word = 'restarted'; Also = { param($Seen) if ($Seen.Run.Lines[0] -match 'no poll was seen') { 'its log was not found' } }
}

# ---- installers ------------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'Windows Installer works all the time' @{
  World = { Set-SimAgent @{} 86400; Start-SimInstaller 600 $false }; Code = 21; Word = 'update-running'; AfterProcess = 'same'
}
Add-Case 'Windows Installer works all the time, under another account' @{
  World = { Set-SimAgent @{} 86400; Add-SimHolder 'Global\_MSIExecute' $true 600 }; Code = 21; Word = 'update-running'; AfterProcess = 'same'
}
Add-Case 'Windows Installer ends in the wait' @{ World = { Set-SimAgent @{} 86400; Start-SimInstaller 12 $false }; Word = 'restarted' }
Add-Case 'Windows Installer replaces the agent in the wait' @{
  World = { Set-SimAgent @{} 86400; Add-SimLater 1.5 { Start-SimInstaller 10 $true } }; Parameters = $SimPatient; Word = 'restarted', 'started'; Waive = 'memory'
}
Add-Case 'an idle msiexec.exe' @{ World = { Set-SimAgent @{} 86400; New-SimProcess 'msiexec.exe' 600 10 'C:\Windows\system32\msiexec.exe /V' }; Word = 'restarted' }
Add-Case 'an msiexec.exe with the package of the agent' @{
  World = { Set-SimAgent @{} 86400; New-SimProcess 'msiexec.exe' 600 10 'msiexec /quiet /i C:\temp\codedeploy-agent.msi' }
  Code = 21; Word = 'update-running'; AfterProcess = 'same'
}
Add-Case 'the updater of the agent' @{
  World = { Set-SimAgent @{} 86400; New-SimProcess 'codedeploy-agent-updater.exe' 600 10 'codedeploy-agent-updater.exe' }
  Code = 21; Word = 'update-running'; AfterProcess = 'same'
}
Add-Case 'an installer begins while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Start-SimInstaller 400 $false } }
  Code = 21; Word = 'update-running'; AfterProcess = 'same'
}
Add-Case 'an installer works when the follow-up wants to start the service' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; Add-SimAfterAsking 1100 { Start-SimInstaller 600 $false } }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
  Also = { foreach ($order in @(Get-SimOrders 'follow-up*' 'start')) { if ($order.At -lt $SimStart + 1700) { "the follow-up ordered a start at $($order.At - $SimStart), while an installer worked" } } }
}
Add-Case 'an installer replaces the agent while it drains, and starts it' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; Add-SimAfterAsking 1100 { Start-SimInstaller 600 $true } }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
  Also = { if (@(Get-SimOrders 'follow-up*' 'start').Count -gt 0) { 'the follow-up ordered a start, although the installer did' } }
}
Add-Case 'an installer begins when the service has stopped' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimStopped } { Start-SimInstaller 30 $false } }; Word = 'restarted'
}

# ---- a new agent could not start -------------------------------------------------------------------------------------------------------------------------

Add-Case 'the service is disabled' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StartMode = 'Disabled' }
  Code = 12; Word = 'preflight-failed'; Detail = 'disabled'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'its program is gone' @{
  World = { Set-SimAgent @{} 86400; [System.IO.File]::Delete($World.Service.Executable) }; Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'its program is gone, v2' @{
  World = {
    Set-SimKind2
    $World.Service.PathName = '"\\?\' + $World.Service.Executable + '" run-as-service'
    Set-SimAgent @{ Kind = 'v2' } 86400
    [System.IO.File]::Delete($World.Service.Executable)
  }
  Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'a path with the prefix that v2 writes' @{
  World = { Set-SimKind2; $World.Service.PathName = '"\\?\' + $World.Service.Executable + '" run-as-service'; Set-SimAgent @{ Kind = 'v2' } 86400 }
  Word = 'restarted'
}
Add-Case 'a path without quotes' @{ World = { $World.Service.PathName = $World.Service.Executable; Set-SimAgent @{} 86400 }; Word = 'restarted' }
Add-Case 'no follow-up may be started' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpRefused = 'This program is blocked by group policy.' }
  Code = 12; Word = 'preflight-failed'; Orders = ''; FollowUp = $false; AfterProcess = 'same'
}
Add-Case 'the follow-up never comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = -1 }; Code = 12; Word = 'preflight-failed'; Orders = ''; FollowUp = $false; AfterProcess = 'same'
}
Add-Case 'the follow-up comes up when the run is over, and ends by itself' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 75.0 }; Code = 12; Word = 'preflight-failed'; Orders = ''; FollowUp = $false; AfterProcess = 'same'
}
Add-Case 'an operator stops the service when the late follow-up lives' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 75.0; Add-SimWhen { Test-SimFollowUpCame } { Send-SimOrder 'operator' 'stop' } }
  Code = 12; Word = 'preflight-failed'; Orders = ''; After = 'Stopped'
}
Add-Case 'the follow-up dies before the stop is asked for' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimFollowUpCame } { Add-SimLater 3 { Stop-SimFollowUp } } }
  Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'sc.exe cannot be run' @{
  World = { Set-SimAgent @{} 86400; $World.Service.Unrunnable = "Zugriff: $([char]0xFC) \ `"x`"`r`n`t" + (' and much more' * 100) }
  Code = 12; Word = 'preflight-failed'; Orders = ''; AfterProcess = 'same'
}

# ---- the stop --------------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'the stop is denied' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StopCodes.Add(5) }; Code = 31; Word = 'old-agent-survived'; Detail = '\b5\b'; AfterProcess = 'same'
}
Add-Case 'another service depends on it' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StopCodes.Add(1051) }; Code = 31; Word = 'old-agent-survived'; AfterProcess = 'same'
}
Add-Case 'the stop cannot be taken at first' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StopCodes.Add(1061) }; Word = 'restarted'; Orders = 'stop 1061, stop 0, start 0'
}
Add-Case 'the stop can never be taken' @{
  World = { Set-SimAgent @{} 86400; foreach ($number in 1..1000) { $null = $World.Service.StopCodes.Add(1061) } }
  Code = 31; Word = 'old-agent-survived'; AfterProcess = 'same'
}
Add-Case 'the stop is taken, and not answered in time' @{ World = { Set-SimAgent @{} 86400; $World.Service.StopAnswer = 1053 }; Word = 'restarted' }
Add-Case 'the stop never ends' @{
  World = { Set-SimAgent @{ Deadlock = $true } 86400 }; Code = 34; Word = 'draining'; State = 'Stop Pending'; FollowUp = $true; After = 'Stop Pending'
}
Add-Case 'the stop never ends, and the follow-up dies; another comes up' @{
  World = { Set-SimAgent @{ Deadlock = $true } 86400; Add-SimAfterAsking 60 { Stop-SimFollowUp } }
  Code = 34; Word = 'draining'; Detail = 'new agent'; FollowUp = $true; After = 'Stop Pending'
}
Add-Case 'the stop never ends, and the follow-up dies; no other comes up' @{
  World = { Set-SimAgent @{ Deadlock = $true } 86400; Add-SimAfterAsking 60 { $World.FollowUpComes = -1; Stop-SimFollowUp } }
  Code = 34; Word = 'draining'; Detail = 'nothing starts it'; FollowUp = $false; After = 'Stop Pending'
}
Add-Case 'a long drain, and the follow-up dies; the next one starts the service' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 2400; Add-SimAfterAsking 60 { Stop-SimFollowUp } }; Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'a long drain of v2, and the follow-up dies; the next one starts the service' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400; Add-SimRace 2400; Add-SimAfterAsking 60 { Stop-SimFollowUp } }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'a drain of a minute at most is configured: the follow-up does not live for two hours' @{
  World = { Set-SimConfiguration ":kill_agent_max_wait_time_seconds: 60`n"; $World.MaxWait = 60; Set-SimAgent @{ Deadlock = $true } 86400 }
  During = { Add-SimLater 1200 { if (@(Get-SimFollowUps).Count -gt 0) { $World.Harm.Add(@{ Kind = 'life'; Text = 'the follow-up still lives after 20 minutes'; Age = 0 }) } } }
  Code = 34; FollowUp = $true; After = 'Stop Pending'
}
Add-Case 'a drain of a minute at most is configured: the agent gives its hook up' @{
  World = { Set-SimConfiguration ":kill_agent_max_wait_time_seconds: 60`n"; $World.MaxWait = 60; Set-SimAgent @{} 86400; Add-SimRace 2400 }
  Waive = 'hook'; Word = 'restarted'
}
Add-Case 'a stop that has lasted too long' @{
  World = { Set-SimAgent @{ Deadlock = $true } 86400; Send-SimOrder 'operator' 'stop' }
  Earlier = @(@{}); Between = { Step-SimTime 7900 }
  Code = 33; Word = 'agent-unhealthy'; Detail = 'stopping'; Orders = ''; State = 'Stop Pending'; Process = 'same'; After = 'Stop Pending'
}
Add-Case 'the agent dies while it stops' @{ World = { Set-SimAgent @{} 86400; Add-SimAfterAsking 2 { Exit-SimAgent $World.Service.Agent } }; Word = 'restarted' }
Add-Case 'the stop never ends, v2' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2'; Deadlock = $true } 86400 }
  Code = 34; Word = 'draining'; State = 'Running'; FollowUp = $true; AfterProcess = 'same'
}
Add-Case 'somebody asked v2 to stop, which does not show' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400; Send-SimOrder 'operator' 'stop' }; Word = 'restarted', 'started'
}
Add-Case 'somebody asked for the stop: there is no follow-up' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-LONG' 900 $false; Send-SimOrder 'operator' 'stop' }
  Code = 34; Word = 'draining'; Detail = 'somebody'; Orders = ''; State = 'Stop Pending'; Process = 'same'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'somebody asked for the stop: there is no follow-up, and none can be started' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-LONG' 900 $false; Send-SimOrder 'operator' 'stop'; $World.FollowUpComes = -1 }
  Code = 34; Word = 'draining'; Detail = 'nothing starts it'; Orders = ''; State = 'Stop Pending'; FollowUp = $false; After = 'Stopped'
}
Add-Case 'somebody asked for the stop, which ends in the wait' @{
  World = { Set-SimAgent @{} 86400; Send-SimOrder 'operator' 'stop' }; Word = 'started', 'restarted'
}
Add-Case 'somebody asks for the stop while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Send-SimOrder 'operator' 'stop' } }; Word = 'restarted', 'started'
}
Add-Case 'the agent dies while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Exit-SimAgent $World.Service.Agent } }; Word = 'restarted', 'started'
}
Add-Case 'somebody restarts it while the follow-up comes up' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 6.0; Add-SimLater 12 { Exit-SimAgent $World.Service.Agent; Send-SimOrder 'operator' 'start' } }
  Word = 'restarted', 'started'
}
Add-Case 'its processes outlive Stopped for 20 s' @{ World = { Set-SimAgent @{ Linger = 20 } 86400 }; Word = 'restarted' }
Add-Case 'its processes outlive Stopped for 50 s' @{ World = { Set-SimAgent @{ Linger = 50 } 86400 }; Word = 'restarted' }
Add-Case 'its processes stay for ever' @{ World = { Set-SimAgent @{ Linger = 1000000 } 86400 }; Code = 30, 31, 32; After = 'Stopped' }
Add-Case 'its Ruby outlives Stopped for 20 s' @{ World = { Set-SimAgent @{ RubyLingers = 20 } 86400 }; Word = 'restarted' }
Add-Case 'its Ruby stays for ever' @{
  World = { Set-SimAgent @{ RubyLingers = 1000000 } 86400 }; Waive = 'beside'; Code = 31; Word = 'old-agent-survived'; Process = 'new'; After = 'any'
}
Add-Case 'others get the numbers of its processes at once' @{
  World = {
    Set-SimAgent @{} 86400
    Add-SimWhen { Test-SimOldIsGone } { $World.ReusesIds = $true; Clear-SimProcessHandles; foreach ($name in 'notepad.exe', 'ruby.exe', 'cmd.exe') { New-SimProcess $name 4 5 $name } }
  }
  Word = 'restarted'
}
Add-Case 'the new agent gets the numbers of the old one' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOldIsGone } { $World.ReusesIds = $true; Clear-SimProcessHandles } }; Word = 'restarted'
}

# ---- the start -------------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'the first start gives 1053' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StartCodes.Add(1053) }; Word = 'restarted'; Orders = 'stop 0, start 1053, start 0'
}
Add-Case 'each start gives 1053' @{
  World = { Set-SimAgent @{} 86400; foreach ($number in 1..50) { $null = $World.Service.StartCodes.Add(1053) } }; Code = 30, 32; After = 'any'
}
Add-Case 'each start is denied' @{
  World = { Set-SimAgent @{} 86400; foreach ($number in 1..50) { $null = $World.Service.StartCodes.Add(5) } }
  Code = 30; Word = 'service-manager-failed'; After = 'Stopped'
}
Add-Case 'somebody disables the service while it stops' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOrdered 'stop' } { $World.Service.StartMode = 'Disabled' } }
  Code = 30; Word = 'service-manager-failed'; After = 'Stopped'
}
Add-Case 'somebody disables the service while it drains for long' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; Add-SimAfterAsking 600 { $World.Service.StartMode = 'Disabled' } }
  Waive = 'hook'; Code = 34; FollowUp = $true; After = 'Stopped'
  Also = { if (@(Get-SimOrders 'follow-up*' 'start').Count -gt 1) { 'the follow-up went on to order starts of a disabled service' } }
}
Add-Case 'the follow-up has to order the start three times' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; foreach ($number in 1, 2) { $null = $World.Service.StartCodes.Add(1053) } }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'it unpacks for 20 s, and is pending for 15 more' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Connect = 20; Pending = 15 } }; Word = 'restarted'
}
Add-Case 'it is not running, and can be started' @{ World = {}; Word = 'started'; Orders = 'start 0' }
Add-Case 'it is not running, and the first start gives 1053' @{ World = { $World.Service.StartCodes.Add(1053) }; Word = 'started'; Orders = 'start 1053, start 0' }
Add-Case 'it is not running, and disabled' @{
  World = { $World.Service.StartMode = 'Disabled' }; Code = 12; Word = 'preflight-failed'; Orders = ''; Process = 'any'; After = 'Stopped'
}
Add-Case 'it is not running, and each start ends soon' @{
  World = { $World.Plan = New-SimPlan @{ DiesAfter = 1 } }; Code = 32; Word = 'agent-down'; After = 'Stopped'
}
Add-Case 'it starts already, as at boot' @{ World = { $null = Send-SimOrder 'SCM' 'start' }; Waive = 'memory' }
Add-Case 'it starts already, and unpacks for 20 s' @{
  World = { $World.Plan = New-SimPlan @{ Connect = 20; Pending = 15 }; $null = Send-SimOrder 'SCM' 'start' }; Waive = 'memory'
}
Add-Case 'it starts already, and never comes up' @{
  World = { $World.Plan = New-SimPlan @{ Connect = 20; Pending = 1000000 }; $null = Send-SimOrder 'SCM' 'start' }; Code = 31, 33; After = 'any'
}
Add-Case 'it starts already, and the whole host is younger than the deployment' @{
  World = { $World.Clock = 50.0; $null = Send-SimOrder 'SCM' 'start' }; Parameters = $SimFresh; Word = 'already-restarted'; Orders = ''
}

# ---- the proof -------------------------------------------------------------------------------------------------------------------------------------------

foreach ($SimPoll in 'denied', 'no-credentials', 'unreachable', 'black-hole', 'no-metadata') {
  Add-Case "the new agent is deaf: $SimPoll" @{
    World = [scriptblock]::Create("Set-SimAgent @{} 86400; `$World.Plan = New-SimPlan @{ Poll = '$SimPoll' }"); Code = 33; Word = 'agent-unhealthy'; Process = 'new'; AfterProcess = 'new'
  }
}
Add-Case 'the first poll of the new agent is refused' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Poll = { if ($World.Clock -lt $SimStart + 42) { 'denied' } else { 'good' } } } }; Word = 'restarted'
}
Add-Case 'the old agent is deaf, the new one is heard' @{ World = { Set-SimAgent @{ Poll = 'denied' } 86400 }; Word = 'restarted' }
Add-Case 'the new agent is deaf, and has the numbers of the old one, which was heard' @{
  World = {
    Set-SimAgent @{} 86400
    $World.Plan = New-SimPlan @{ Poll = 'black-hole' }
    Add-SimWhen { Test-SimOldIsGone } { $World.ReusesIds = $true; Clear-SimProcessHandles }
  }
  Code = 33; Word = 'agent-unhealthy'; Process = 'new'
}
Add-Case 'the new agent is deaf, has the numbers of the old one, and the clock is set back' @{
  World = {
    Set-SimAgent @{} 86400
    $World.Plan = New-SimPlan @{ Poll = 'black-hole' }
    Add-SimWhen { Test-SimOldIsGone } { $World.ReusesIds = $true; Clear-SimProcessHandles }
    Add-SimInProof 30 { $World.Offset = -3600 }
  }
  Code = 33; Word = 'agent-unhealthy'; Process = 'new'
}
Add-Case 'there is no log' @{ World = { $World.HasLog = $false; Set-SimAgent @{} 86400 }; Word = 'restarted'; Detail = 'no poll was seen' }
Add-Case 'the log ended an hour ago' @{
  World = { $World.Clock -= 3600; Set-SimAgent @{} 86400; $World.Clock += 3600; $World.HasLog = $false }; Word = 'restarted'; Detail = 'no poll was seen'
}
Add-Case 'the log of the new agent grows by 400 KiB at a time' @{
  World = { Set-SimAgent @{} 86400; foreach ($seconds in 5, 30, 60) { Add-SimInProof $seconds { Write-SimLog $World.Service.Agent 'INFO' ('x' * 400KB) } } }
}
Add-Case 'log_aws_wire: polls are logged elsewhere' @{
  World = { Set-SimConfiguration ":log_aws_wire: true`n"; $World.Plan = New-SimPlan @{ LogsPolls = $false }; Set-SimAgent @{ LogsPolls = $false } 86400 }
  Word = 'restarted'; Detail = 'no poll was seen'
}
Add-Case 'log_aws_wire, and the new agent is deaf' @{
  World = { Set-SimConfiguration ":log_aws_wire: true`n"; $World.Plan = New-SimPlan @{ LogsPolls = $false; Poll = 'denied' }; Set-SimAgent @{ LogsPolls = $false } 86400 }
  Code = 33; Word = 'agent-unhealthy'; Detail = 'AccessDenied'; Process = 'new'
}
Add-Case 'it ends after some seconds, once' @{ World = { Set-SimAgent @{} 86400; $null = $World.Plans.Add((New-SimPlan @{ DiesAfter = 8 })) }; Word = 'restarted' }
Add-Case 'it ends after some seconds, each time' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ DiesAfter = 8 } }; Code = 32; Word = 'agent-down'; After = 'Stopped'
}
Add-Case 'it crashes every 5 s, and Windows starts it again' @{
  World = { Set-SimAgent @{} 86400; $World.Service.Recovery = 2; $World.Plan = New-SimPlan @{ DiesAfter = 5 } }; Code = 32, 33; After = 'any'
}
Add-Case 'it crashes every 40 s, and Windows starts it again' @{
  World = { Set-SimAgent @{} 86400; $World.Service.Recovery = 2; $World.Plan = New-SimPlan @{ DiesAfter = 40 } }; Code = 32, 33; After = 'any'
}
Add-Case 'it crashes once, and Windows starts it again' @{
  World = { Set-SimAgent @{} 86400; $World.Service.Recovery = 5; $null = $World.Plans.Add((New-SimPlan @{ DiesAfter = 6 })) }; Word = 'restarted'
}
Add-Case 'somebody restarts it in the proof' @{ World = { Set-SimAgent @{} 86400; Add-SimInProof 20 { Restart-SimService 'operator' } }; Word = 'restarted' }
Add-Case 'somebody restarts it in the proof, in a moment' @{
  World = { Set-SimAgent @{} 86400; Add-SimInProof 20 { Exit-SimAgent $World.Service.Agent; Send-SimOrder 'operator' 'start' } }; Word = 'restarted'
}
Add-Case 'somebody restarts it while the run waits for a hook' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-SHORT' 20 $false; Add-SimLater 22 { Restart-SimService 'operator' } }
  Parameters = $SimPatient; Word = 'restarted', 'started'; Waive = 'memory'
}
Add-Case 'somebody starts it before the run does' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOldIsGone } { Send-SimOrder 'operator' 'start' } }; Word = 'restarted'
}
Add-Case 'somebody stops it for good in the proof' @{
  World = { Set-SimAgent @{} 86400; Add-SimInProof 20 { Send-SimOrder 'operator' 'stop' } }; Code = 0, 32, 34; After = 'any'
}
Add-Case 'the clock is set back by an hour in the wait' @{ World = { Set-SimAgent @{} 86400; Add-SimLater 5 { $World.Offset = -3600 } }; Word = 'restarted' }
Add-Case 'the clock is set back by an hour in the proof' @{ World = { Set-SimAgent @{} 86400; Add-SimInProof 20 { $World.Offset = -3600 } }; Word = 'restarted' }
Add-Case 'the clock is set forward by an hour in the proof' @{ World = { Set-SimAgent @{} 86400; Add-SimInProof 20 { $World.Offset = 3600 } }; Word = 'restarted' }
# 2026-11-01 05:59 UTC; an hour is had twice in New York then. Offset counts from the day of all cases.
Add-Case 'the end of summer time in the proof' @{ World = { $World.Offset = -2181660; Set-SimAgent @{} 86400 }; Word = 'restarted' }
Add-Case 'the end of summer time in the proof of a deaf agent' @{
  World = { $World.Offset = -2181660; Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Poll = 'denied'; First = 22 } }
  Code = 33; Word = 'agent-unhealthy'; Process = 'new'
}
Add-Case 'the clock is set back by an hour in the proof of a deaf agent' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Poll = 'denied' }; Add-SimInProof 5 { $World.Offset = -3600 } }
  Code = 33; Word = 'agent-unhealthy'; Process = 'new'
}

Add-Case 'everything takes as long as it may' @{
  World = {
    $agent = Set-SimAgent @{ PollSeconds = 80; Linger = 25 } 86400
    Start-SimHook $agent 'd-LONG' 110 $false
    Add-SimRace 130
    foreach ($number in 1, 2) { $null = $World.Service.StartCodes.Add(1053) }
    $World.Plan = New-SimPlan @{ Connect = 20; Pending = 15; PollSeconds = 60 }
  }
  Parameters = $SimPatient; Waive = 'hook'; Word = 'restarted'
}

# ---- v2 --------------------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'v2, idle' @{ World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400 }; Word = 'restarted' }
Add-Case 'v2, in a poll of 80 s, and then 30 s until it sees the stop' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2'; PollSeconds = 95; Between = 30 } 86400 }; Word = 'restarted'
}
Add-Case 'v2, the metadata service needs 20 s' @{
  World = { Set-SimKind2; $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Metadata = 20 }; Set-SimAgent @{ Kind = 'v2' } 86400 }; Word = 'restarted'
}
Add-Case 'v2, no credentials each time' @{
  World = { Set-SimKind2; $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Metadata = 20; Fails = 'credentials'; EndsAfterFailure = 1 }; Set-SimAgent @{ Kind = 'v2' } 86400 }
  Code = 32; Word = 'agent-down'; Detail = 'credentials'; After = 'Stopped'
}
Add-Case 'v2, TLS fails each time, and it ends 20 s later' @{
  World = { Set-SimKind2; $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Fails = 'tls'; EndsAfterFailure = 20 }; Set-SimAgent @{ Kind = 'v2' } 86400 }
  Code = 32; Word = 'agent-down'; Detail = 'TLS'; After = 'Stopped'
}
Add-Case 'v2, no region at the first start' @{
  World = { Set-SimKind2; $null = $World.Plans.Add((New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Metadata = 20; Fails = 'region' })); Set-SimAgent @{ Kind = 'v2' } 86400 }; Word = 'restarted'
}
Add-Case 'v2, the new agent is deaf' @{
  World = { Set-SimKind2; $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Poll = 'denied' }; Set-SimAgent @{ Kind = 'v2' } 86400 }
  Code = 33; Word = 'agent-unhealthy'; Detail = 'AccessDenied'; Process = 'new'
}
Add-Case 'v2, the first poll of the new agent is refused' @{
  World = {
    Set-SimKind2
    $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Poll = { if ($World.Service.Agent.Failures -eq 0 -and $World.Clock -lt $SimStart + 90) { 'denied' } else { 'good' } } }
    Set-SimAgent @{ Kind = 'v2' } 86400
  }
  Word = 'restarted'
}
Add-Case 'v2, fresh' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400 }
  Earlier = @(@{}); Between = { Step-SimTime 100 }; Parameters = $SimFresh; Word = 'already-restarted'; Orders = ''
}
Add-Case 'v2, fresh, and deaf since' @{
  World = {
    Set-SimKind2
    $World.Plan = New-SimPlan @{ Kind = 'v2'; MemoryMiB = 12; Poll = { if ($World.Clock -gt $SimStart + 200) { 'denied' } else { 'good' } } }
    Set-SimAgent @{ Kind = 'v2' } 86400
  }
  Earlier = @(@{}); Between = { Step-SimTime 300 }
  Parameters = $SimFresh; Code = 33; Word = 'agent-unhealthy'; Detail = 'AccessDenied'; Orders = ''; AfterProcess = 'same'
}
Add-Case 'v2, there is no log' @{
  World = { Set-SimKind2; $World.HasLog = $false; Set-SimAgent @{ Kind = 'v2' } 86400 }; Word = 'restarted'; Detail = 'no poll was seen'
}
Add-Case 'v1 is replaced by v2 in the wait' @{
  World = { Set-SimAgent @{} 86400; Add-SimLater 1.5 { Start-SimInstaller 20 $true; Set-SimKind2 } }
  Parameters = $SimPatient; Word = 'restarted', 'started'; Waive = 'memory'
}

# ---- uninstalled -----------------------------------------------------------------------------------------------------------------------------------------

Add-Case 'uninstalled in the wait' @{
  World = { Set-SimAgent @{} 86400; Add-SimLater 2 { Remove-SimService 'operator' } }
  Code = 10, 12; Process = 'any'; Orders = ''; After = 'gone'; Parameters = $SimPatient
}
Add-Case 'uninstalled while the run waits for a hook' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-SHORT' 25 $false; Add-SimLater 26 { Remove-SimService 'operator' } }
  Code = 10, 12; Process = 'any'; Orders = ''; After = 'gone'; Parameters = $SimPatient
}
Add-Case 'uninstalled while it stops' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOrdered 'stop' } { Remove-SimService 'operator' } }; Code = 10, 32; After = 'gone'; Waive = 'uninstalled'
}
Add-Case 'uninstalled in the proof' @{
  World = { Set-SimAgent @{} 86400; Add-SimInProof 10 { Remove-SimService 'operator' } }; Code = 10, 32, 34; After = 'gone'; Waive = 'uninstalled'
}
Add-Case 'uninstalled while it drains for long' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; Add-SimAfterAsking 600 { Remove-SimService 'operator' } }
  Waive = 'hook'; Code = 34; FollowUp = $true; After = 'gone'
}

# ---- killed by Systems Manager ---------------------------------------------------------------------------------------------------------------------------

Add-Case 'killed in the wait' @{
  World = { $agent = Set-SimAgent @{} 86400; Start-SimHook $agent 'd-LONG' 600 $false }; Kill = { $World.Clock -gt $SimStart + 10 }; AfterProcess = 'same'
}
Add-Case 'killed when the follow-up has come up' @{ Kill = { Test-SimFollowUpCame }; AfterProcess = 'same' }
Add-Case 'killed before the follow-up comes up, and somebody stops the service later' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 10.0; Add-SimWhen { Test-SimFollowUpCame } { Add-SimLater 60 { Send-SimOrder 'operator' 'stop' } } }
  Kill = { $World.Clock -gt $SimStart + 14 }; After = 'Stopped'
}
Add-Case 'killed before the follow-up comes up, and its number is given away' @{
  World = {
    Set-SimAgent @{} 86400
    $World.FollowUpComes = 10.0
    Add-SimLater 15 { $World.ReusesIds = $true; $World.FreeIds.Reverse(); New-SimProcess 'notepad.exe' 4 5 'notepad.exe' }
  }
  During = { Add-SimLater 600 { if (@(Get-SimFollowUps).Count -gt 0) { $World.Harm.Add(@{ Kind = 'life'; Text = 'the follow-up of nobody still lives after 10 minutes'; Age = 0 }) } } }
  Kill = { $World.Clock -gt $SimStart + 14 }; AfterProcess = 'same'
}
Add-Case 'killed when the follow-up was told, before the stop was ordered' @{ Kill = { Test-SimAsked } }
Add-Case 'killed after it asked for the stop' @{ Kill = { Test-SimOrdered 'stop' }; AfterProcess = 'new' }
Add-Case 'killed after it asked for the stop, v2' @{
  World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400 }; Kill = { Test-SimOrdered 'stop' }; AfterProcess = 'new'
}
Add-Case 'killed when the service has stopped' @{ Kill = { Test-SimStopped }; AfterProcess = 'new' }
Add-Case 'killed when the service has stopped, and the first start gives 1053' @{
  World = { Set-SimAgent @{} 86400; $World.Service.StartCodes.Add(1053) }; Kill = { Test-SimStopped }; AfterProcess = 'new'
}
Add-Case 'killed when the service has stopped, whose processes stay for 2 minutes' @{
  World = { Set-SimAgent @{ Linger = 120 } 86400 }; Kill = { Test-SimStopped }; AfterProcess = 'new'
}
Add-Case 'killed after the start' @{ Kill = { Test-SimOrdered 'start' }; AfterProcess = 'new' }
Add-Case 'killed, and the next run finds it draining' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOrdered 'stop' } { Start-SimHook $World.Service.Agent 'd-RACE' 300 $false; Stop-SimRun } }
  Earlier = @(@{}); Code = 34; Word = 'draining'; Detail = 'new agent'; Orders = ''; FollowUp = $true; AfterProcess = 'new'
}

# ---- what reviewers did to it ----------------------------------------------------------------------------------------------------------------------------

Add-Case 'the clock was set back between the starts of its two processes, and it holds 300 MiB' @{
  World = { $agent = Set-SimAgent @{ MemoryMiB = 300 } 86400; $agent.Ruby.Created = $agent.Main.Created.AddHours(-1).AddSeconds(4) }
  Parameters = @{ MinMemoryMiB = '200' }; Word = 'restarted'
}
Add-Case 'the clock was set back between the starts of its two processes, and its Ruby outlives Stopped for 20 s' @{
  World = { $agent = Set-SimAgent @{ RubyLingers = 20 } 86400; $agent.Ruby.Created = $agent.Main.Created.AddHours(-1).AddSeconds(4) }; Word = 'restarted'
}
Add-Case 'the clock was set back between the starts of its two processes, and it is deaf' @{
  World = { $World.Clock = 200.0; $agent = Set-SimAgent @{ Poll = 'denied' } 150; $agent.Ruby.Created = $agent.Main.Created.AddHours(-1).AddSeconds(4) }
  Parameters = $SimFresh; Code = 33; Word = 'agent-unhealthy'; AfterProcess = 'same'
}
Add-Case 'an upgrade has taken the service away for 20 s when the run begins' @{
  World = { Set-SimAgent @{} 86400; $null = Send-SimOrder 'installer' 'stop'; Step-SimTime 90; Start-SimUpgrade 0 20 $true }
  Parameters = $SimPatient; Code = 0, 21; Waive = 'memory'
}
Add-Case 'an upgrade has taken the service away, and does not end' @{
  World = { Set-SimAgent @{} 86400; $null = Send-SimOrder 'installer' 'stop'; Step-SimTime 90; Start-SimUpgrade 0 600 $true }
  Code = 21; Word = 'update-running'; Orders = ''; State = 'gone'; AfterProcess = 'new'
}
Add-Case 'an upgrade takes the service away when it has stopped for the run' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimStopped } { Start-SimUpgrade 0 20 $true } }; Code = 0, 34; AfterProcess = 'new'
}
Add-Case 'an upgrade that fails takes the service away when it has drained for long' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 600; Add-SimAfterAsking 600 'Start-SimUpgrade 40 10 $false' }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'an installer outlasts the drain and its margin' @{
  World = {
    Set-SimConfiguration ":kill_agent_max_wait_time_seconds: 200`n"
    $World.MaxWait = 200
    Set-SimAgent @{} 86400
    Add-SimRace 190
    Add-SimAfterAsking 160 'Start-SimInstaller 900 $false'
  }
  Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'an installer hangs for two hours while it drains' @{
  World = { Set-SimAgent @{} 86400; Add-SimRace 1200; Add-SimAfterAsking 1100 'Start-SimInstaller 7000 $false' }; Waive = 'hook'; Code = 34; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'the start is refused at once, twice' @{ World = { Set-SimAgent @{} 86400; foreach ($number in 1..2) { $null = $World.Service.StartCodes.Add(32) } }; Word = 'restarted' }
Add-Case 'the start is refused at once four times: the follow-up goes on' @{
  World = { Set-SimAgent @{} 86400; foreach ($number in 1..4) { $null = $World.Service.StartCodes.Add(32) } }; Code = 30; Word = 'service-manager-failed'; FollowUp = $true; AfterProcess = 'new'
}
Add-Case 'its processes outlive Stopped for 250 s' @{ World = { Set-SimAgent @{ Linger = 250 } 86400 }; Code = 32; Word = 'agent-down'; FollowUp = $true; AfterProcess = 'new' }
Add-Case 'its processes outlive Stopped for 80 s' @{ World = { Set-SimAgent @{ Linger = 80 } 86400 }; Code = 0, 32; Word = 'restarted', 'agent-down'; AfterProcess = 'new' }
Add-Case 'the agent''s installer begins while it stops' @{
  World = { Set-SimAgent @{} 86400; Add-SimWhen { Test-SimOrdered 'stop' } { Start-SimInstaller 60 $true } }; Code = 0, 34
  Also = { foreach ($order in @(Get-SimOrders 'script' 'start')) { if ($World.Objects.ContainsKey('Global\_MSIExecute')) { 'the run ordered a start while the installer worked' } } }
}
Add-Case 'the follow-up needs 45 s to come up' @{ World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 45.0 }; Word = 'restarted' }
Add-Case 'the lock is handed over while the follow-up of that run still lives' @{
  World = { Set-SimAgent @{} 86400; $World.FollowUpComes = 60.5 }; Earlier = @(@{}); Between = { $World.FollowUpComes = 3.0; Step-SimTime 0.5 }
  Parameters = @{ BusyWaitSeconds = '0' }; Word = 'restarted'
}
Add-Case 'killed between the telling and the order, and an operator stops the service 10 minutes later' @{
  World = { Set-SimAgent @{} 86400; Add-SimLater 600 { Send-SimOrder 'operator' 'stop' } }; Kill = { Test-SimAsked }; After = 'Stopped'
}
Add-Case 'killed between the telling and the order, v2' @{ World = { Set-SimKind2; Set-SimAgent @{ Kind = 'v2' } 86400 }; Kill = { Test-SimAsked }; AfterProcess = 'new' }
Add-Case 'the list of processes lacks Ruby once, and it holds 300 MiB' @{
  World = { Set-SimAgent @{ MemoryMiB = 300 } 86400; Add-SimTrouble 'processes' 'leave-ruby' 1 $null }; Parameters = @{ MinMemoryMiB = '200' }; Word = 'restarted'
}
Add-Case 'the list of processes lacks Ruby once, of a new agent that is deaf' @{
  World = { Set-SimAgent @{} 86400; $World.Plan = New-SimPlan @{ Poll = 'black-hole' }; Add-SimTrouble 'processes' 'leave-ruby' 1 { $World.Clock -gt $SimStart + 100 } }
  Code = 33; Word = 'agent-unhealthy'; AfterProcess = 'new'
}
Add-Case 'the old Ruby stays for 20 s, and a list of processes lacks it' @{
  World = { Set-SimAgent @{ RubyLingers = 20 } 86400; Add-SimTrouble 'processes' 'leave-ruby' 1 { Test-SimStopped } }; Word = 'restarted'
}
