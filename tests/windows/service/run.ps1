# Runs document/restart-agent.ps1 against a real Windows service, made for it: what the simulated Windows of tests/windows cannot tell, which is whether Windows
# does what the script expects.
#
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File tests\windows\service\run.ps1                # every case: about 25 minutes
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File tests\windows\service\run.ps1 -Case killed   # those with this word in their name
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File tests\windows\service\run.ps1 -List
#
# Needs Windows with .NET Framework 4, Windows PowerShell 5.1 and an administrator; and a machine that may be lost, without an agent of CodeDeploy's. The service,
# its files and the script's mark are gone afterwards. Exit status 1 when anything failed, and also when it could not run: a test that skips proves nothing.
param([string]$Case = '', [switch]$List)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

. ([System.IO.Path]::Combine($PSScriptRoot, 'stage.ps1'))
. ([System.IO.Path]::Combine($PSScriptRoot, 'cases.ps1'))

# Why this machine is not one for it; empty if it is. A real agent must never be touched, nor what one left.
function Get-Refusal {
  if ([Environment]::OSVersion.Platform -ne [System.PlatformID]::Win32NT) { return 'this is not Windows' }
  if ($PSVersionTable.PSVersion.Major -ne 5) { return "this is PowerShell $($PSVersionTable.PSVersion); Systems Manager runs the script with Windows PowerShell 5.1" }
  $me = New-Object -TypeName System.Security.Principal.WindowsPrincipal -ArgumentList ([System.Security.Principal.WindowsIdentity]::GetCurrent())
  if (-not $me.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)) { return 'this is not run as an administrator' }
  if ($null -ne (Get-Service -Name $ServiceName -ErrorAction SilentlyContinue)) { return "there is a service $ServiceName on this machine" }
  if (Test-Path -LiteralPath $DataFolder) { return "there is $DataFolder on this machine" }
  if (Test-FollowUp) { return 'a run of the script is under way on this machine' }
  ''
}

# Gives a row of the table. What a case throws is a problem of it, as is what cannot be cleared away after it.
function Invoke-Case($One) {
  $Problems.Clear()
  $Runs.Clear()
  $watch = [System.Diagnostics.Stopwatch]::StartNew()
  try { $null = & $One.Do } catch { Add-Problem "$($_.Exception.GetBaseException().Message) (line $($_.InvocationInfo.ScriptLineNumber))" }
  $log = ''
  try { $log = Get-Log } catch { $log = "its log cannot be read: $_" }
  try { Clear-Stage } catch { Add-Problem "not cleared away: $($_.Exception.GetBaseException().Message)" }
  @{
    Name = $One.Name; Seconds = [int]$watch.Elapsed.TotalSeconds; Problems = @($Problems); Log = $log; Lines = @($Runs | ForEach-Object { $_.Text.Trim() })
    Said = (@($Runs | ForEach-Object { if ("$($_.Code)" -eq '') { 'no line' } else { "$($_.Code) $($_.Result)" } }) -join ', ')
  }
}

# The row; and of one that fell what did not hold, what the script printed, and the end of the agent's log.
function Write-Row($Row) {
  $verdict = 'holds'
  if ($Row.Problems.Count -gt 0) { $verdict = 'FALLS' }
  Write-Host ('{0}  {1,4} s  {2,-52}  {3}' -f $verdict, $Row.Seconds, $Row.Name, $Row.Said)
  if ($Row.Problems.Count -eq 0) { return }
  foreach ($text in $Row.Problems) { Write-Host "         $text" }
  foreach ($text in $Row.Lines) { Write-Host "         printed: $text" }
  foreach ($text in @($Row.Log -split "`n" | Select-Object -Last 20)) { Write-Host "         log: $text" }
}

$Chosen = @($Cases | Where-Object { $_.Name -like "*$Case*" })
if ($List) {
  foreach ($one in $Chosen) { Write-Host $one.Name }
  exit 0
}
$Refusal = Get-Refusal
if ($Refusal -ne '') {
  Write-Host "not run: $Refusal"
  exit 1
}

$Failed = 0
$AmazonWasThere = Test-Path -LiteralPath $AmazonFolder
try {
  Build-Agent
  foreach ($one in $Chosen) {
    $row = Invoke-Case $one
    Write-Row $row
    if ($row.Problems.Count -gt 0) { $Failed++ }
  }
}
finally {
  # Also after Ctrl-C in the middle of a case.
  try { Clear-Stage } finally { Remove-Stage $AmazonWasThere }
}
Write-Host "$($Chosen.Count - $Failed) passed, $Failed failed"
# A word that fits no case would pass for one that holds.
if ($Chosen.Count -eq 0) { exit 1 }
exit [Math]::Min(1, $Failed)
