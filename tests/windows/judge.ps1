# Plays a case, and holds what became of it against what the case expects and what the contract promises in every case.

# ---- playing -----------------------------------------------------------------------------------------------------------------------------------------------

# After the last run the world goes on for so many seconds; longer than a follow-up may live.
$SimAfterwards = 10800

function Invoke-SimCase($Case, $Folder, $Bench, $Text, $Tracing) {
  $World = New-SimWorld $Folder $Bench $Text
  $World.Tracing = $Tracing
  if ($Tracing) { $null = $World.Trace.Add("--- $($Case.Name)") }
  # Nothing about this Windows but the agent: a few others, so that a list of processes is one.
  New-SimSystemProcess 'System Idle Process' 0
  New-SimSystemProcess 'System' 4
  foreach ($name in 'services.exe', 'lsass.exe', 'svchost.exe', 'amazon-ssm-agent.exe', 'ssm-document-worker.exe') { $null = New-SimProcess $name 4 10 $name }
  $null = & $Case.World
  foreach ($parameters in $Case.Earlier) {
    $run = Invoke-SimRun $parameters
    if ($null -ne $Case.Between) { $null = & $Case.Between }
  }
  $world.Orders.Clear()
  $World.Harm.Clear()
  $seen = @{ Before = (Get-SimTruth) }
  if ($null -ne $Case.During) { $null = & $Case.During }
  if ($null -ne $Case.Kill) { Add-SimWhen $Case.Kill { Stop-SimRun } }
  $seen.Run = Invoke-SimRun $Case.Parameters
  $seen.End = Get-SimTruth
  $seen.EndFollowUps = @(Get-SimFollowUps).Count
  $seen.EndEvent = $World.Objects.ContainsKey('Global\codedeploy-agent-restart-follow-up')
  $seen.RunOrders = @($World.Orders | Where-Object { $_.By -eq 'script' } | ForEach-Object { "$($_.Verb) $($_.Code)" }) -join ', '
  $World.Settling = $true
  Step-SimTime 30
  $seen.SoonFollowUps = @(Get-SimFollowUps).Count
  Step-SimTime 270
  $seen.Later = Get-SimTruth
  Step-SimTime ($SimAfterwards - 300)
  $seen.After = Get-SimTruth
  $seen.AfterFollowUps = @(Get-SimFollowUps).Count
  if ($Tracing) { $World.Trace | ForEach-Object { $_ } | Out-Host }
  @{ Seen = $seen; Problems = @(Get-SimProblems $Case $seen) }
}

function Invoke-SimRun($Parameters) {
  $all = @{ BusyWaitSeconds = '30' }
  foreach ($key in @($Parameters.Keys)) { $all[$key] = $Parameters[$key] }
  $run = @{
    Parameters = $all; Owner = (New-SimOwner 'script' (New-SimProcess 'powershell.exe' 4 70 'powershell.exe -File _script.ps1'))
    Began = $World.Clock; Ended = 0.0; Lines = New-SimList; ExitCode = $null; Stray = @(); Failure = ''; Hangs = $false; Killed = $false
  }
  $World.Run = $run
  $null = & (Join-Path $World.Bench 'process.ps1') $World $run
  $run.Ended = $World.Clock
  Close-SimOwner $run.Owner
  $run
}

# Systems Manager kills it.
function Stop-SimRun {
  if ($World.Run.Owner.Dead) { return }
  Write-SimTrace 'ssm' 'kills the script'
  $World.Run.Killed = $true
  Close-SimOwner $World.Run.Owner
}

# What is true at this moment, whoever could see it.
function Get-SimTruth {
  $service = $World.Service
  $truth = @{ State = 'gone'; Process = $null; Agents = $World.Agents.Count; Heard = $false; Stopping = $false; MemoryKiB = 0; Clock = $World.Clock }
  if ($service.Exists) { $truth.State = $service.State }
  $agent = $service.Agent
  if ($null -eq $agent -or $agent.Phase -eq 'gone' -or $truth.State -eq 'Stopped') { return $truth }
  $truth.Process = $agent.Main
  $truth.Stopping = $agent.Stopping
  $truth.Heard = $agent.Heard -and -not $agent.Stopping
  $truth.MemoryKiB = [long]($agent.Main.Memory / 1KB)
  if ($null -ne $agent.Ruby) { $truth.MemoryKiB += [long]($agent.Ruby.Memory / 1KB) }
  $truth
}

# ---- judging -----------------------------------------------------------------------------------------------------------------------------------------------

$SimMembers = 'agentRestart', 'result', 'code', 'agentVersion', 'memoryBeforeKiB', 'memoryAfterKiB', 'seconds', 'detail'

# The words of each code, as the table of document/README.md has them.
function Read-SimContract($File) {
  $contract = @{}
  foreach ($line in [System.IO.File]::ReadAllLines($File)) {
    if ($line -cmatch '^\| (\d+) \| `([a-z-]+)` \|') { $contract[$Matches[2]] = [int]$Matches[1] }
  }
  if ($contract.Count -lt 10) { throw "the table of codes was not found in $File" }
  $contract
}

# Everything that is wrong, one string each.
function Get-SimProblems($Case, $Seen) {
  foreach ($text in $World.Broken) { "the bench broke: $text" }
  $run = $Seen.Run
  if ($run.Hangs) { "the run hangs: it had not ended after $SimRunLimit s" }
  elseif (-not $run.Killed -and $run.Failure -ne '') { "the script failed: $($run.Failure)" }
  if ($null -ne $Case.Kill -and -not $run.Killed -and -not $Case.MayEnd) { 'the run was not killed, as the case wants it' }
  $line = $null
  if (-not $run.Killed -and -not $run.Hangs) {
    Get-SimLineProblems $run
    if ($run.Lines.Count -gt 0) { try { $line = $run.Lines[0] | ConvertFrom-Json } catch { $line = $null } }
  }
  if ($null -ne $line) {
    Get-SimResultProblems $Case $Seen $line
    Get-SimPromiseProblems $Case $Seen $line
  }
  Get-SimWorldProblems $Case $Seen
  if ($null -ne $Case.Also) { & $Case.Also $Seen }
}

# The contract of the one line.
function Get-SimLineProblems($Run) {
  if ($Run.Stray.Count -gt 0) { "stray output: $($Run.Stray -join ' ')" }
  if ($Run.Lines.Count -ne 1) { "$($Run.Lines.Count) lines instead of one: $($Run.Lines -join ' | ')" }
  if ($Run.Lines.Count -eq 0) { return }
  $text = $Run.Lines[0]
  if ($text -cmatch '[^\x20-\x7E]') { 'the line is not plain ASCII' }
  if ($text.Length -gt 1000) { "the line has $($text.Length) bytes" }
  try { $line = $text | ConvertFrom-Json } catch { return "the line is no JSON: $text" }
  $members = @($line.PSObject.Properties | ForEach-Object { $_.Name }) -join ' '
  if ($members -cne ($SimMembers -join ' ')) { return "the line has other members: $members" }
  if ($line.agentRestart -ne 1) { 'the line is not version 1' }
  if (-not $SimContract.ContainsKey($line.result) -or $SimContract[$line.result] -ne $line.code) { "the contract has no $($line.result) with $($line.code)" }
  if ($Run.ExitCode -ne $line.code) { "the exit code is $($Run.ExitCode), the line says $($line.code)" }
  $seconds = $Run.Ended - $Run.Began
  if ([Math]::Abs($line.seconds - $seconds) -gt 2) { "the line says $($line.seconds) s, it were $seconds" }
  # It has to end by itself before Systems Manager kills it; its last call may be a slow one.
  if ($seconds -gt [long]$Run.Parameters.BusyWaitSeconds + 405) { "it took $seconds s" }
}

# What this case expects of the run.
function Get-SimResultProblems($Case, $Seen, $Line) {
  $said = "$($Line.code) $($Line.result): $($Line.detail)"
  if ($Case.Code -notcontains $Line.code) { "expected code $($Case.Code -join ' or '), found $said" }
  elseif ($null -ne $Case.Word -and $Case.Word -notcontains $Line.result) { "expected $($Case.Word -join ' or '), found $said" }
  if ($null -ne $Case.Detail -and $Line.detail -notmatch $Case.Detail) { "expected a detail with /$($Case.Detail)/, found $said" }
  if ($null -ne $Case.Orders -and $Case.Orders -cne $Seen.RunOrders) { "expected the orders '$($Case.Orders)', found '$($Seen.RunOrders)'" }
  if ($null -ne $Case.State -and $Case.State -ne $Seen.End.State) { "expected the service to be $($Case.State) at the end, it is $($Seen.End.State)" }
  $process = $Case.Process
  if ($null -eq $process) {
    if ($Line.result -eq 'restarted') { $process = 'new' }
    elseif ('already-restarted', 'below-threshold' -contains $Line.result -or 12, 20, 21, 22 -contains $Line.code) { $process = 'same' }
  }
  $isSame = $Seen.End.Process -eq $Seen.Before.Process
  if ($process -eq 'same' -and -not $isSame) { 'expected the same agent at the end; it is another one, or none' }
  if ($process -eq 'new' -and ($isSame -or $null -eq $Seen.End.Process)) { 'expected another agent at the end; it is the same, or none' }
  if ($null -ne $Case.FollowUp -and $Case.FollowUp -ne ($Seen.EndFollowUps -gt 0)) { "expected that a follow-up lives at the end: $($Case.FollowUp); found $($Seen.EndFollowUps)" }
}

# What holds for every case.
function Get-SimPromiseProblems($Case, $Seen, $Line) {
  $said = "$($Line.code) $($Line.result): $($Line.detail)"
  if ($Line.code -eq 0 -and $Case.Waive -notcontains 'truth') {
    $end = $Seen.End
    if ($end.State -ne 'Running') { "$said, but the service is $($end.State)" }
    if ($end.Agents -ne 1) { "$said, but $($end.Agents) agents live" }
    $isBlind = $Line.detail -match 'no poll was seen'
    if (-not $end.Heard -and -not $isBlind) { "$said, but CodeDeploy does not hear the agent" }
    if ($Case.Dies -eq $false -and $Seen.Later.Process -ne $end.Process) { "$said, but 5 minutes later another agent runs, or none" }
    if ($Case.Dies -eq $false -and -not $Seen.Later.Heard -and -not $isBlind) { "$said, but 5 minutes later CodeDeploy does not hear the agent" }
    if ($Case.Waive -notcontains 'memory' -and $Line.memoryAfterKiB -ne $end.MemoryKiB) { "memoryAfterKiB is $($Line.memoryAfterKiB), the agent holds $($end.MemoryKiB)" }
  }
  if ($Line.result -eq 'restarted' -and $Case.Waive -notcontains 'memory' -and $Line.memoryBeforeKiB -ne $Seen.Before.MemoryKiB) {
    "memoryBeforeKiB is $($Line.memoryBeforeKiB), the agent held $($Seen.Before.MemoryKiB)"
  }
  if ($Line.code -eq 34 -and -not $Seen.EndEvent -and $Line.detail -notmatch 'nothing starts it') { "$said, but no follow-up lives" }
  if ($Line.code -eq 34 -and $Seen.EndEvent -and $Line.detail -match 'nothing starts it') { "$said, but a follow-up lives" }
  $untouched = 11, 12, 21, 22 -contains $Line.code -or ($Line.code -eq 10 -and $Case.Waive -notcontains 'uninstalled')
  if ($untouched -and $Seen.RunOrders -ne '') { "$said, but it ordered: $($Seen.RunOrders)" }
  if ($Line.code -eq 20 -and $Seen.RunOrders -match 'stop 0') { "$said, but the agent was told to stop" }
  $goesOn = $Line.detail -match 'tried again in the background'
  if ($Line.code -ne 34 -and -not $goesOn -and $Seen.SoonFollowUps -gt 0) { "$said, but 30 s later a follow-up still lives" }
  if ($goesOn -and -not $Seen.EndEvent) { "$said, but no follow-up lives" }
}

# What became of the host.
function Get-SimWorldProblems($Case, $Seen) {
  foreach ($harm in $World.Harm) { if ($Case.Waive -notcontains $harm.Kind) { $harm.Text } }
  if ($Case.After -ne 'any' -and $Seen.After.State -ne $Case.After) { "expected the service to be $($Case.After) after 3 hours, it is $($Seen.After.State)" }
  if ($Case.After -eq 'Running' -and $Seen.After.Agents -ne 1) { "after 3 hours $($Seen.After.Agents) agents live" }
  $isSame = $Seen.After.Process -eq $Seen.Before.Process
  if ($Case.AfterProcess -eq 'same' -and -not $isSame) { 'expected the same agent after 3 hours; it is another one, or none' }
  if ($Case.AfterProcess -eq 'new' -and $isSame) { 'expected another agent after 3 hours; it is the same' }
  # Nobody needs it when another agent runs.
  foreach ($followUp in $World.FollowUps) {
    if ($null -eq $Seen.After.Process -or $isSame -or $Case.Waive -contains 'follow-up') { continue }
    $late = $followUp.Owner.Ended - [Math]::Max($World.Service.Agent.Since, $Seen.Run.Began)
    if ($late -gt 60) { "$($followUp.Owner.Name) ended $late s after the new agent had come up" }
  }
  if ($Seen.AfterFollowUps -gt 0) { 'a follow-up still lives after 3 hours' }
  foreach ($name in @($World.Objects.Keys)) {
    if ($name -like '*codedeploy-agent-restart*' -and $Case.Waive -notcontains 'objects') { "after 3 hours there still is $name" }
  }
}
