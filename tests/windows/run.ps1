# Runs document/restart-agent.ps1 on a simulated Windows, case by case: see README.md beside this file.
#
#   pwsh -NoProfile -File tests/windows/run.ps1
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File tests\windows\run.ps1
#
# -Case WORDS (cases with these words in their name), -Trace (or -Verbose: what was asked and done, and when), -List, -Script FILE (another script), -Faults (each
# fault of faults.ps1 planted in the script: some case has to fall), -Seeds N (so many drawn worlds instead of the cases, from -First on). Ends with 1 if anything does not
# hold.
param([string]$Case = '', [switch]$Trace, [switch]$Verbose, [switch]$List, [string]$Script = '', [switch]$Faults, [int]$Seeds = 0, [int]$First = 1)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'
$SimBench = $PSScriptRoot
$SimRoot = Split-Path -Parent (Split-Path -Parent $SimBench)
$SimDocument = Join-Path $SimRoot 'document'
$SimScript = Join-Path $SimDocument 'restart-agent.ps1'
if ($Script -ne '') { $SimScript = (Resolve-Path -LiteralPath $Script).ProviderPath }
$SimTracing = $Trace -or $Verbose

foreach ($SimFile in 'world.ps1', 'judge.ps1', 'cases.ps1', 'weather.ps1', 'faults.ps1') { . (Join-Path $SimBench $SimFile) }

# By hand the script takes these where it is given nothing.
foreach ($SimName in 'TRIGGERED_AT', 'SENT_AT', 'BUSY_WAIT_SECONDS', 'MIN_MEMORY_MIB') { [Environment]::SetEnvironmentVariable($SimName, $null) }

# v1 logs in local time, v2 in UTC: where the two are the same, nobody would see them confused. Windows has no such variable; there the machine's own zone counts.
$env:TZ = 'America/New_York'
[System.TimeZoneInfo]::ClearCachedData()

# ---- the script, cut ---------------------------------------------------------------------------------------------------------------------------------------

$SimSeam = '# ---- Windows: all that touches it -'
$SimStartLine = '# ---- the start -'

# What stands before its start: functions and variables.
function Get-SimDefinitions($Text) {
  $at = $Text.IndexOf("`n$SimStartLine")
  if ($at -lt 0) { throw "the script has no line '$SimStartLine'" }
  $Text.Substring(0, $at + 1)
}

# Each function of its first part needs one of the same name here; else the script would reach the real machine.
function Assert-SimSeam($Text) {
  $from = $Text.IndexOf($SimSeam)
  if ($from -lt 0) { throw "the script has no line '$SimSeam'" }
  $to = $Text.IndexOf("`n# ---- ", $from)
  $own = [System.IO.File]::ReadAllText((Join-Path $SimBench 'seam.ps1'))
  foreach ($match in [regex]::Matches($Text.Substring($from, $to - $from), '(?m)^function ([\w-]+)')) {
    $name = $match.Groups[1].Value
    if ($own -notmatch ('(?m)^function ' + $name + '\b')) { throw "seam.ps1 has no $name" }
  }
}

# ---- playing ---------------------------------------------------------------------------------------------------------------------------------------------------

# Every case in a folder of its own; gives its name, the line in short, virtual and real seconds, and its problems.
function Invoke-SimCases($Cases, $Text, $Folder) {
  $file = Join-Path $Folder 'definitions.ps1'
  [System.IO.File]::WriteAllText($file, (Get-SimDefinitions $Text))
  $number = 0
  foreach ($case in $Cases) {
    $number++
    $ownFolder = Join-Path $Folder "$number"
    $null = [System.IO.Directory]::CreateDirectory($ownFolder)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $row = @{ Name = $case.Name; Said = '-'; Seconds = 0; Real = 0; Problems = @() }
    try {
      $played = Invoke-SimCase $case $ownFolder $SimBench $file $SimTracing
      $row.Problems = $played.Problems
      $run = $played.Seen.Run
      $row.Seconds = $run.Ended - $run.Began
      if ($run.Killed) { $row.Said = 'killed' }
      elseif ($run.Lines.Count -gt 0 -and $run.Lines[0] -match '"result":"([^"]*)","code":(\d+)') { $row.Said = "$($Matches[2]) $($Matches[1])" }
      $row.Line = "$($run.Lines -join ' | ')"
    }
    catch { $row.Problems = @("the bench broke: $($_.Exception.Message) ($($_.InvocationInfo.PositionMessage))") }
    $row.Real = $watch.Elapsed.TotalSeconds
    [System.IO.Directory]::Delete($ownFolder, $true)
    $row
  }
}

function Write-SimRows($Rows) {
  foreach ($row in $Rows) {
    $verdict = 'holds'
    if ($row.Problems.Count -gt 0) { $verdict = 'FALLS' }
    '{0,-88} {1,-22} {2,6:0} s  {3}' -f $row.Name, $row.Said, $row.Seconds, $verdict
  }
}

# A case that falls on the script as it is notices nothing. Each is asked once.
function Test-SimHolds($One, $Text, $Folder, $Known) {
  if (-not $Known.ContainsKey($One.Name)) { $Known[$One.Name] = @(Invoke-SimCases @($One) $Text $Folder | Where-Object { $_.Problems.Count -gt 0 }).Count -eq 0 }
  $Known[$One.Name]
}

# The first case that holds without the fault and falls with it.
function Find-SimFallen($Cases, $Text, $Planted, $Folder, $Known) {
  foreach ($one in $Cases) {
    $row = @(Invoke-SimCases @($one) $Planted $Folder)[0]
    if ($row.Problems.Count -gt 0 -and (Test-SimHolds $one $Text $Folder $Known)) { return $row }
  }
}

# The faults: which case notices each. One whose place is gone, or that no case notices, is a failure.
function Invoke-SimFaults($Cases, $Text, $Folder) {
  $missed = 0
  $known = @{}
  foreach ($fault in $SimFaults) {
    $at = $Text.IndexOf($fault.From)
    if ($at -lt 0 -or $Text.IndexOf($fault.From, $at + 1) -ge 0) {
      $missed++
      Write-Host "NO PLACE  $($fault.Name)"
      continue
    }
    $planted = $Text.Replace($fault.From, $fault.To)
    # The case that is meant to notice it goes first; the others follow only if it does not.
    $ordered = @($Cases | Where-Object { $_.Name -eq $fault.Case }) + @($Cases | Where-Object { $_.Name -ne $fault.Case })
    $fallen = Find-SimFallen $ordered $Text $planted $Folder $known
    if ($null -eq $fallen) {
      $missed++
      Write-Host "UNSEEN    $($fault.Name)"
    }
    elseif ($fallen.Name -ne $fault.Case) { Write-Host "elsewhere $($fault.Name): $($fallen.Name): $($fallen.Problems[0])" }
    else { Write-Host "seen      $($fault.Name): $($fallen.Problems[0])" }
  }
  Write-Host "$($SimFaults.Count - $missed) passed, $missed failed"
  $missed
}

function Invoke-SimBench {
  $cases = @($SimCases | Where-Object { $_.Name -like "*$Case*" })
  if ($Seeds -gt 0) { $cases = @($First..($First + $Seeds - 1) | ForEach-Object { Get-SimWeather $_ }) }
  if ($List) {
    foreach ($one in $cases) { Write-Host $one.Name }
    return 0
  }
  $text = [System.IO.File]::ReadAllText($SimScript).Replace("`r`n", "`n")
  Assert-SimSeam $text
  $folder = Join-Path ([System.IO.Path]::GetTempPath()) "codedeploy-agent-restart-$PID"
  $null = [System.IO.Directory]::CreateDirectory($folder)
  try {
    if ($Faults) { return Invoke-SimFaults $cases $text $folder }
    $rows = @(Invoke-SimCases $cases $text $folder)
  }
  finally { [System.IO.Directory]::Delete($folder, $true) }
  Write-SimRows $rows | ForEach-Object { Write-Host $_ }
  $fallen = @($rows | Where-Object { $_.Problems.Count -gt 0 })
  foreach ($row in $fallen) {
    Write-Host ''
    Write-Host "FALLS: $($row.Name)"
    foreach ($problem in $row.Problems) { Write-Host "  $problem" }
    if ($row.ContainsKey('Line')) { Write-Host "  $($row.Line)" }
  }
  $real = ($rows | ForEach-Object { $_.Real } | Measure-Object -Sum).Sum
  Write-Host ''
  Write-Host ('{0} passed, {1} failed, in {2:0} s' -f ($rows.Count - $fallen.Count), $fallen.Count, $real)
  # A name that fits no case would pass for one that holds.
  if ($rows.Count -eq 0) { return 1 }
  $fallen.Count
}

$SimContract = Read-SimContract (Join-Path $SimDocument 'README.md')
$SimFailed = @(Invoke-SimBench)[-1]
exit [Math]::Min(1, $SimFailed)
