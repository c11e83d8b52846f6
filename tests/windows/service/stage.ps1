# What the cases are made of: the service of the stand-in agent, one run of the script as Systems Manager would run it, and what is held against it.
#
# Every wait has an end. Nothing is touched that this did not make: the service did not exist before (run.ps1 sees to that), and a process is ended only if its
# program lies in the folder that run.ps1 made, or if it is a run of the script that was started here.

$ServiceName = 'codedeployagent'
$LockName = 'Global\codedeploy-agent-restart'
$FollowUpName = 'Global\codedeploy-agent-restart-follow-up'
$MarkKey = 'HKLM:\SOFTWARE\CodeDeployAgentRestart'
$ParameterNames = 'TRIGGERED_AT', 'SENT_AT', 'BUSY_WAIT_SECONDS', 'MIN_MEMORY_MIB'
# The members of the line, in the order of the contract (document/README.md).
$Members = 'agentRestart result code agentVersion memoryBeforeKiB memoryAfterKiB seconds detail'
$AgentVersion = 'OFFICIAL_1.8.1-27_msi'

$RestartScript = [System.IO.Path]::GetFullPath([System.IO.Path]::Combine($PSScriptRoot, '..', '..', '..', 'document', 'restart-agent.ps1'))
$AgentSource = [System.IO.Path]::Combine($PSScriptRoot, 'agent.cs')
$AmazonFolder = [System.IO.Path]::Combine([Environment]::GetFolderPath('CommonApplicationData'), 'Amazon')
$DataFolder = [System.IO.Path]::Combine($AmazonFolder, 'CodeDeploy')
$BinFolder = [System.IO.Path]::Combine($DataFolder, 'bin')
$Program = [System.IO.Path]::Combine($BinFolder, 'codedeploy-agent.exe')

# As v1 ships it: its folders are relative to ProgramData.
$Configuration = @'
---
:log_aws_wire: false
:log_dir: 'Amazon/CodeDeploy/log'
:pid_dir: ''
:program_name: codedeploy-agent
:root_dir: 'Amazon/CodeDeploy'
:verbose: false
:wait_between_runs: 1
:proxy_uri:
:max_revisions: 5
'@

# Of the case that runs: what does not hold, and the runs of the script.
$Problems = New-Object -TypeName System.Collections.ArrayList
$Runs = New-Object -TypeName System.Collections.ArrayList

function Add-Problem($Text) { $null = $Problems.Add($Text) }

function Assert-That($Holds, $Otherwise) { if (-not $Holds) { Add-Problem $Otherwise } }

# Whether the condition came true within so many seconds. What it throws (a folder that is just being deleted, a question that failed) counts as not yet.
function Test-Within($Limit, $Condition) {
  $watch = [System.Diagnostics.Stopwatch]::StartNew()
  while ($true) {
    try { if (& $Condition) { return $true } } catch { $null = $_ }
    if ($watch.Elapsed.TotalSeconds -ge $Limit) { return $false }
    Start-Sleep -Milliseconds 250
  }
}

# A case that cannot be set up ends here.
function Wait-For($Limit, $What, $Condition) { if (-not (Test-Within $Limit $Condition)) { throw "not within $Limit s: $What" } }

# ---- the agent -----------------------------------------------------------------------------------------------------------------------------------------------

# The compiler is part of .NET Framework, and so of every Windows.
function Build-Agent {
  $compiler = [System.IO.Path]::Combine($env:WINDIR, 'Microsoft.NET', 'Framework64', 'v4.0.30319', 'csc.exe')
  $null = [System.IO.Directory]::CreateDirectory($BinFolder)
  $said = & $compiler '/nologo' '/target:exe' '/reference:System.ServiceProcess.dll' "/out:$Program" $AgentSource
  if ($LASTEXITCODE -ne 0) { throw "csc.exe: $($said -join ' ')" }
  foreach ($role in 'ruby.exe', 'hook.exe') { [System.IO.File]::Copy($Program, [System.IO.Path]::Combine($BinFolder, $role)) }
}

# Of the agents that start from now on: agent.cs says which keys there are.
function Set-Behaviour($Behaviour) {
  $lines = [string[]]@($Behaviour.Keys | ForEach-Object { "$_=$($Behaviour[$_])" })
  [System.IO.File]::WriteAllLines([System.IO.Path]::Combine($BinFolder, 'behaviour.txt'), $lines)
}

# The service of a generation, 'v1' or 'v2', as its installer makes it: automatic, LocalSystem, and without recovery actions.
function Install-Agent($Generation, $Behaviour) {
  Set-Behaviour $Behaviour
  [System.IO.File]::WriteAllText([System.IO.Path]::Combine($DataFolder, '.version'), "agent_version: $AgentVersion`n")
  $command = "`"$Program`""
  if ($Generation -eq 'v1') { [System.IO.File]::WriteAllText([System.IO.Path]::Combine($DataFolder, 'conf.yml'), $Configuration) }
  else { $command += ' run-as-service' }
  $null = New-Service -Name $ServiceName -BinaryPathName $command -StartupType 'Automatic'
}

# Gives the agent that runs, once it polls, which an agent has long done when a deployment ends.
function Start-Agent($Generation, $Behaviour) {
  Install-Agent $Generation $Behaviour
  Start-Service -Name $ServiceName
  Wait-For 60 'the agent polls' { Test-Log 'poll_host_command|entering polling loop' }
  Get-Standing
}

function Get-Log {
  $folder = [System.IO.Path]::Combine($DataFolder, 'log')
  if (-not [System.IO.Directory]::Exists($folder)) { return '' }
  @([System.IO.Directory]::GetFiles($folder) | ForEach-Object { Read-Shared $_ }) -join "`n"
}

# Reads a file that somebody else has open for writing.
function Read-Shared($Path) {
  $stream = New-Object -TypeName System.IO.FileStream -ArgumentList $Path, 'Open', 'Read', 'ReadWrite, Delete'
  try { (New-Object -TypeName System.IO.StreamReader -ArgumentList $stream).ReadToEnd() } finally { $stream.Dispose() }
}

function Test-Log($Pattern) { (Get-Log) -cmatch $Pattern }

# Processes of the stand-in, whoever started them.
function Get-AgentProcesses { @(Get-CimInstance -ClassName 'Win32_Process' | Where-Object { "$($_.ExecutablePath)" -like "$BinFolder\*" }) }

# What Windows tells of the service: its State, its process's Id (0 without one), and the names of all processes of the stand-in.
function Get-Standing {
  $service = Get-CimInstance -ClassName 'Win32_Service' -Filter "Name='$ServiceName'"
  if ($null -eq $service) { return @{ State = 'none'; Id = 0; Names = '' } }
  @{ State = $service.State; Id = $service.ProcessId; Names = (@(Get-AgentProcesses | ForEach-Object { $_.Name } | Sort-Object) -join ' ') }
}

# Ends the service's process, as an operator would who has read of a stop that never ends.
function Stop-ServiceProcess {
  $standing = Get-Standing
  if (@(Get-AgentProcesses | Where-Object { $_.ProcessId -eq $standing.Id }).Count -ne 1) { throw "process $($standing.Id) is not the stand-in's" }
  Stop-Process -Id $standing.Id -Force
}

# ---- what Windows keeps by name ------------------------------------------------------------------------------------------------------------------------------

function Test-FollowUp {
  try { [System.Threading.EventWaitHandle]::OpenExisting($FollowUpName).Dispose() }
  catch {
    if ($_.Exception.GetBaseException() -is [System.Threading.WaitHandleCannotBeOpenedException]) { return $false }
    throw
  }
  $true
}

# Tells it to end. A handle that stays open here would keep the event when the follow-up has ended.
function Set-FollowUpSignal {
  $signal = [System.Threading.EventWaitHandle]::OpenExisting($FollowUpName)
  $null = $signal.Set()
  $signal.Dispose()
}

# Does something while this process holds a mutex.
function Invoke-Holding($Name, $Do) {
  $mutex = New-Object -TypeName System.Threading.Mutex -ArgumentList $false, $Name
  try {
    if (-not $mutex.WaitOne(30000)) { throw "somebody else holds $Name" }
    try { & $Do } finally { $mutex.ReleaseMutex() }
  }
  finally { $mutex.Dispose() }
}

# The time of day, in seconds since 1970, as the function gives it.
function Get-Seconds { [long][Math]::Floor(([DateTime]::UtcNow - (New-Object -TypeName System.DateTime -ArgumentList 1970, 1, 1)).TotalSeconds) }

# ---- one run of the script -----------------------------------------------------------------------------------------------------------------------------------

# As the SSM Agent starts it: a process of its own, both outputs read through pipes, no input.
function Start-Restart($Parameters) {
  foreach ($name in $ParameterNames) { [Environment]::SetEnvironmentVariable($name, "$($Parameters[$name])") }
  $start = New-Object -TypeName System.Diagnostics.ProcessStartInfo
  $start.FileName = [System.IO.Path]::Combine($PSHOME, 'powershell.exe')
  $start.Arguments = "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$RestartScript`""
  $start.UseShellExecute = $false
  $start.CreateNoWindow = $true
  $start.RedirectStandardInput = $true
  $start.RedirectStandardOutput = $true
  $start.RedirectStandardError = $true
  $process = [System.Diagnostics.Process]::Start($start)
  $process.StandardInput.Close()
  $limit = 120
  if ($Parameters.ContainsKey('BUSY_WAIT_SECONDS')) { $limit = [int]$Parameters['BUSY_WAIT_SECONDS'] }
  $run = @{
    Process = $process; Out = $process.StandardOutput.ReadToEndAsync(); Problem = $process.StandardError.ReadToEndAsync()
    Watch = [System.Diagnostics.Stopwatch]::StartNew(); Limit = $limit + 450; Code = ''; Result = ''; Detail = ''; Text = ''
  }
  $null = $Runs.Add($run)
  $run
}

# Waits for its end, and holds it against the contract.
function Complete-Restart($Run) {
  if (-not $Run.Process.WaitForExit(1000 * $Run.Limit)) { throw "the script still runs after $($Run.Limit) s" }
  # Systems Manager waits for the end of the output, which a process that inherited it would delay.
  if (-not ($Run.Out.Wait(5000) -and $Run.Problem.Wait(5000))) { throw 'somebody holds the output of a script that has ended' }
  $Run.Code = $Run.Process.ExitCode
  $Run.Text = $Run.Out.Result
  Assert-That ($Run.Problem.Result -eq '') "on standard error: $($Run.Problem.Result)"
  Assert-That ($Run.Text -match '\A[\x20-\x7E]{1,1000}\r?\n\z') "not one line of ASCII, of at most 1,000 bytes: $($Run.Text)"
  try { $line = $Run.Text | ConvertFrom-Json } catch { throw "not JSON: $($Run.Text)" }
  $names = @($line.PSObject.Properties | ForEach-Object { $_.Name }) -join ' '
  if ($names -cne $Members) { throw "members of the line: $names" }
  $Run.Result = $line.result
  $Run.Detail = $line.detail
  Assert-That ($line.agentRestart -eq 1) "agentRestart is $($line.agentRestart)"
  Assert-That ($line.code -eq $Run.Code) "the line's code is $($line.code), the exit code $($Run.Code)"
  $took = [int]$Run.Watch.Elapsed.TotalSeconds
  Assert-That ([Math]::Abs($line.seconds - $took) -lt 30) "the line tells of $($line.seconds) s, it took $took"
  if (@(10, 11) -notcontains $Run.Code) {
    Assert-That ($line.agentVersion -ceq $AgentVersion) "agentVersion is $($line.agentVersion)"
    Assert-That ($line.memoryBeforeKiB -ge 0 -and $line.memoryBeforeKiB -lt 4000000) "memoryBeforeKiB is $($line.memoryBeforeKiB)"
  }
  if (@('restarted', 'already-restarted', 'below-threshold') -ccontains $Run.Result) {
    Assert-That ($line.memoryBeforeKiB -gt 1000 -and $line.memoryAfterKiB -gt 1000) "memory is $($line.memoryBeforeKiB) and $($line.memoryAfterKiB) KiB"
  }
}

function Assert-Run($Run, $Code, $Result, $Detail) {
  Assert-That ($Run.Code -eq $Code -and $Run.Result -ceq $Result) "expected $Code $Result, found $($Run.Code) $($Run.Result)"
  Assert-That ($Run.Detail -cmatch $Detail) "expected a detail like '$Detail', found '$($Run.Detail)'"
}

function Wait-ForStop { Wait-For 120 'the script asks for the stop' { "$((Get-Service -Name $ServiceName).Status)" -eq 'StopPending' } }

# Ends the follow-up without a word, as somebody may who does not know what it is.
function Stop-FollowUpProcess {
  $found = @(Get-CimInstance -ClassName 'Win32_Process' | Where-Object { $_.Name -eq 'powershell.exe' -and
      "$($_.CommandLine)".Contains($RestartScript) -and "$($_.CommandLine)" -cmatch ' follow-up \d+ \d+ \d+\s*$' })
  if ($found.Count -ne 1) { throw "$($found.Count) follow-ups run" }
  Stop-Process -Id $found[0].ProcessId -Force
  Wait-For 10 'the end of the follow-up' { -not (Test-FollowUp) }
}

# A whole run, and what it must have said.
function Invoke-Restart($Parameters, $Code, $Result, $Detail) {
  $run = Start-Restart $Parameters
  Complete-Restart $run
  Assert-Run $run $Code $Result $Detail
}

# ---- what must be afterwards ---------------------------------------------------------------------------------------------------------------------------------

# The agent's processes, and no second agent beside it.
function Get-NamesOf($Generation) { if ($Generation -eq 'v1') { 'codedeploy-agent.exe ruby.exe' } else { 'codedeploy-agent.exe' } }

# The service runs in a new process, and of the old agent nothing is left.
function Assert-Replaced($Before, $Generation) {
  $after = Get-Standing
  Assert-That ($after.State -eq 'Running') "the service is $($after.State)"
  Assert-That ($after.Id -ne $Before.Id) "the service's process is still $($after.Id)"
  Assert-That ($after.Names -eq (Get-NamesOf $Generation)) "processes: $($after.Names)"
}

function Assert-Untouched($Before) {
  $after = Get-Standing
  foreach ($what in 'State', 'Id', 'Names') { Assert-That ($after[$what] -eq $Before[$what]) "$what was $($Before[$what]), and is $($after[$what])" }
}

function Assert-Standing($State, $Id) {
  $after = Get-Standing
  Assert-That ($after.State -eq $State -and $after.Id -eq $Id) "expected $State in process $Id, found $($after.State) in process $($after.Id)"
}

function Assert-FollowUpLives { Assert-That (Test-FollowUp) 'no follow-up lives' }

# It looks each 2 s whether it is needed.
function Assert-NoFollowUp { Assert-That (Test-Within 20 { -not (Test-FollowUp) }) 'a follow-up still lives' }

# What was promised with 34: the follow-up starts the service when it has stopped, and ends.
function Assert-FollowUpStarts($Before, $Generation, $Limit) {
  $started = Test-Within $Limit { $now = Get-Standing; $now.State -eq 'Running' -and $now.Id -ne $Before.Id -and $now.Names -eq (Get-NamesOf $Generation) }
  Assert-That $started "no new agent within $Limit s"
  Assert-NoFollowUp
  Assert-Replaced $Before $Generation
}

# ---- cleaning up ---------------------------------------------------------------------------------------------------------------------------------------------

# Runs of the script that a failed case left; then the follow-up, which would start the service again; then the agent, and what it wrote.
function Clear-Stage {
  foreach ($name in $ParameterNames) { [Environment]::SetEnvironmentVariable($name, '') }
  foreach ($run in $Runs) { if (-not $run.Process.HasExited) { $run.Process.Kill() } }
  if (Test-FollowUp) { Set-FollowUpSignal }
  Wait-For 30 'the end of the follow-up' { -not (Test-FollowUp) }
  Wait-For 30 'the end of the stand-in' {
    $left = @(Get-AgentProcesses)
    foreach ($process in $left) { Stop-Process -Id $process.ProcessId -Force -ErrorAction SilentlyContinue }
    $left.Count -eq 0
  }
  if ($null -ne (Get-Service -Name $ServiceName -ErrorAction SilentlyContinue)) {
    $null = & 'sc.exe' 'delete' $ServiceName
    Wait-For 60 'the end of the service' { $null -eq (Get-Service -Name $ServiceName -ErrorAction SilentlyContinue) }
  }
  if (Test-Path -LiteralPath $MarkKey) { Remove-Item -LiteralPath $MarkKey -Recurse -Force }
  foreach ($name in 'log', 'ongoing-deployment', 'conf.yml', '.version') { Remove-Path ([System.IO.Path]::Combine($DataFolder, $name)) }
}

# A process that has just ended, or a virus scanner, may have a file open for a moment more.
function Remove-Path($Path) {
  Wait-For 30 "the end of $Path" {
    if (Test-Path -LiteralPath $Path) { Remove-Item -LiteralPath $Path -Recurse -Force }
    $true
  }
}

function Remove-Stage($AmazonWasThere) {
  Remove-Path $DataFolder
  if (-not $AmazonWasThere) { Remove-Path $AmazonFolder }
}
