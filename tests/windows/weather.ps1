# Worlds that are drawn: `run.ps1 -Seeds N`. Nothing special is expected of the run; the promises of judge.ps1 have to hold. A world is its seed: `run.ps1 -Seeds 1 -First
# SEED -Trace` plays it again.

function Get-SimDraw($Random, $Choices) { $Choices[$Random.Next($Choices.Count)] }
function Test-SimDraw($Random, $Percent) { $Random.Next(100) -lt $Percent }
function Get-SimDrawn($Random, $From, $To) { $From + ($To - $From) * $Random.NextDouble() }

# An agent that starts well, or one with something about it.
function Get-SimDrawnPlan($Random, $Kind) {
  $changes = @{ Kind = $Kind; Connect = (Get-SimDrawn $Random 0.5 20); Pending = (Get-SimDrawn $Random 0 15); PollSeconds = (Get-SimDrawn $Random 44 62) }
  $changes.Linger = Get-SimDrawn $Random 0.1 12
  if ($Kind -eq 'v2') {
    $changes.MemoryMiB = 12
    $changes.Metadata = Get-SimDrawn $Random 0.2 20
    $changes.Between = Get-SimDrawn $Random 0.2 30
  }
  if (Test-SimDraw $Random 15) { $changes.Poll = Get-SimDraw $Random @('denied', 'no-credentials', 'unreachable', 'black-hole', 'no-metadata') }
  if ($Kind -eq 'v2' -and $changes.ContainsKey('Poll')) { $changes.Poll = 'denied' }
  if (Test-SimDraw $Random 10) { $changes.DiesAfter = Get-SimDrawn $Random 0 90 }
  if ($Kind -eq 'v2' -and (Test-SimDraw $Random 10)) { $changes.Fails = Get-SimDraw $Random @('credentials', 'region', 'tls') }
  New-SimPlan $changes
}

# What somebody does at a moment.
$SimDeeds = @{
  'a hook' = {
    param($Random)
    if ($World.Service.State -ne 'Running' -or $World.Service.Agent.Stopping) { return }
    Start-SimHook $World.Service.Agent 'd-DRAWN' (Get-SimDrawn $Random 1 600) $false
  }
  'restart' = { param($Random) Restart-SimService 'operator' }
  'restart at once' = { param($Random) if ($World.Service.State -eq 'Running') { Exit-SimAgent $World.Service.Agent; Send-SimOrder 'operator' 'start' } }
  'start' = { param($Random) Send-SimOrder 'operator' 'start' }
  'stop' = { param($Random) Send-SimOrder 'operator' 'stop' }
  'crash' = { param($Random) if ($null -ne $World.Service.Agent) { Exit-SimAgent $World.Service.Agent } }
  'disable' = { param($Random) $World.Service.StartMode = 'Disabled' }
  'uninstall' = { param($Random) Remove-SimService 'operator' }
  # Windows Installer does one thing at a time.
  'installer' = {
    param($Random)
    if ($World.Objects.ContainsKey('Global\_MSIExecute')) { return }
    Start-SimInstaller (Get-SimDrawn $Random 2 300) $false
  }
  'reinstall' = {
    param($Random)
    if ($World.Objects.ContainsKey('Global\_MSIExecute') -or $World.Service.State -ne 'Running') { return }
    Start-SimInstaller (Get-SimDrawn $Random 2 100) $true
  }
  'clock' = { param($Random) $World.Offset += Get-SimDraw $Random @(-3600, -60, 60, 3600) }
  'follow-up dies' = { param($Random) Stop-SimFollowUp }
}
# After these the service may be down, and rightly so.
$SimSadDeeds = 'stop', 'crash', 'disable', 'uninstall', 'follow-up dies', 'restart at once'

function Invoke-SimDeed($Deed) {
  Write-SimTrace 'somebody' "does: $($Deed.Name)"
  $World.LastDeed = $World.Clock
  $null = & $SimDeeds[$Deed.Name] $Deed.Random
}

# The case of a seed.
function Get-SimWeather($Seed) {
  $random = New-Object -TypeName System.Random -ArgumentList $Seed
  $kind = 'v1'
  if (Test-SimDraw $random 35) { $kind = 'v2' }
  $drawn = @{ Random = $random; Kind = $kind; Deeds = @(); Plans = @() }
  # What will be done is drawn at once, so that a seed means the same whatever the script does.
  for ($left = $random.Next(4); $left -gt 0; $left--) {
    $deed = @{ Name = (Get-SimDraw $random @($SimDeeds.Keys | Sort-Object)); At = (Get-SimDrawn $random 0 160) }
    $deed.Random = New-Object -TypeName System.Random -ArgumentList $random.Next()
    $drawn.Deeds += $deed
  }
  for ($left = 6; $left -gt 0; $left--) { $drawn.Plans += Get-SimDrawnPlan $random $kind }
  $names = @($drawn.Deeds | ForEach-Object { $_.Name })
  $drawn.Absent = Test-SimDraw $random 12
  $drawn.FollowUpComes = Get-SimDrawn $random 0.3 22
  if (Test-SimDraw $random 4) { $drawn.FollowUpComes = -1 }
  $drawn.StartCodes = Get-SimDraw $random @(0, 0, 0, 0, 1, 2)
  $drawn.StopCodes = Get-SimDraw $random @(0, 0, 0, 0, 1, 2)
  $drawn.Recovery = Get-SimDraw $random @(0, 0, 3, 10)
  $drawn.ReusesIds = Test-SimDraw $random 40
  $drawn.Troubles = @()
  for ($left = $random.Next(3); $left -gt 0; $left--) {
    $how = Get-SimDraw $random @('throw', 'empty', 'slow', 'leave-out', 'no-date', 'stale')
    $of = 'processes'
    if ($how -eq 'stale' -or ('throw', 'slow' -contains $how -and (Test-SimDraw $random 50))) { $of = 'service' }
    $drawn.Troubles += @{ Of = $of; How = $how; Count = 1 + $random.Next(2); From = (Get-SimDrawn $random 0 120) }
  }
  $parameters = @{ BusyWaitSeconds = "$(Get-SimDraw $random @(0, 20, 60, 120))" }
  if (Test-SimDraw $random 20) { $parameters.MinMemoryMiB = '200' }
  if (Test-SimDraw $random 15) { $parameters.TriggeredAt = '1'; $parameters.SentAt = '1790000000' }
  $case = New-SimCase "seed $Seed" @{
    Parameters = $parameters; Code = @($SimContract.Values | Sort-Object -Unique); Process = 'any'; Dies = $true
    # Held against what was drawn, below.
    Waive = @('memory', 'truth', 'hook', 'installer')
  }
  $isSad = @($drawn.Plans | Where-Object { $_.DiesAfter -ge 0 -or $_.Fails -ne '' }).Count -gt 0 -or $drawn.FollowUpComes -lt 0
  # One that was down already stays so where its start is interrupted, and others order a start but once.
  $isSad = $isSad -or $drawn.Absent -or ($drawn.StartCodes -gt 0 -and $names.Count -gt 0) -or @($names | Where-Object { $SimSadDeeds -contains $_ }).Count -gt 0
  if ($isSad) { $case.After = 'any' }
  if ($names -contains 'uninstall') { $case.Waive += 'uninstalled' }
  $case.Name += " ($kind" + (@($names | ForEach-Object { ", $_" }) -join '') + ')'
  if (Test-SimDraw $random 12) {
    $case.Kill = [scriptblock]::Create("`$World.Clock -gt `$SimStart + $([int](Get-SimDrawn $random 1 120))")
    $case.MayEnd = $true
  }
  $case.Drawn = $drawn
  $case.World = { Set-SimWeather $Case.Drawn }
  $case.Also = { param($Seen) Get-SimWeatherProblems $Seen }
  $case
}

function Set-SimWeather($Drawn) {
  $World.LastDeed = -1000.0
  if ($Drawn.Kind -eq 'v2') { Set-SimKind2 }
  $World.ReusesIds = $Drawn.ReusesIds
  $World.Service.Recovery = $Drawn.Recovery
  $World.FollowUpComes = $Drawn.FollowUpComes
  $old = $Drawn.Plans[0]
  foreach ($plan in $Drawn.Plans[1..5]) { $null = $World.Plans.Add($plan) }
  $World.Plan = New-SimPlan @{ Kind = $Drawn.Kind }
  for ($left = $Drawn.StartCodes; $left -gt 0; $left--) { $null = $World.Service.StartCodes.Add(1053) }
  for ($left = $Drawn.StopCodes; $left -gt 0; $left--) { $null = $World.Service.StopCodes.Add(1061) }
  if (-not $Drawn.Absent) { $null = Set-SimAgent @{ Kind = $old.Kind; Poll = $old.Poll; PollSeconds = $old.PollSeconds; Linger = $old.Linger; Between = $old.Between } 86400 }
  foreach ($trouble in $Drawn.Troubles) {
    Add-SimTrouble $trouble.Of $trouble.How $trouble.Count ([scriptblock]::Create("`$World.Clock -gt `$SimStart + $([int]$trouble.From)"))
  }
  foreach ($deed in $Drawn.Deeds) { Add-SimDue ($World.Clock + $deed.At) 'Invoke-SimDeed' $deed }
}

# A deed of the last seconds could not be seen any more; and nobody can see that v2 was asked to stop, nor hear one that dies later.
function Get-SimWeatherProblems($Seen) {
  foreach ($harm in $World.Harm) { if ($harm.Kind -ne 'follow-up' -and $harm.Kind -ne 'beside' -and $harm.Age -gt 12) { "$($harm.Text), for $($harm.Age) s" } }
  $run = $Seen.Run
  if ($run.Lines.Count -eq 0 -or $run.Lines[0] -notmatch '"code":0,' -or $Seen.End.Clock - $World.LastDeed -lt 12) { return }
  $isBlind = $run.Lines[0] -match 'no poll was seen'
  $agent = $World.Service.Agent
  if ($Seen.End.State -ne 'Running') { "code 0, but the service is $($Seen.End.State)" }
  if ($Seen.End.Agents -ne 1) { "code 0, but $($Seen.End.Agents) agents live" }
  if (-not $Seen.End.Heard -and -not $isBlind -and -not ($agent.Kind -eq 'v2' -and $Seen.End.Stopping)) { 'code 0, but CodeDeploy does not hear the agent' }
}
