# The functions of the script's first part, on the simulated Windows: same names, same meaning. Whoever calls them is $SimMe: a run of the script, or a follow-up.
#
# Each call lets a little time pass, in which others act. From the moment at which Systems Manager has killed the run, none has an effect any more.

# The two that only read files are the script's own, on the files of the case's folder.
$SimFilesBelow = ${function:Get-FilesBelow}
$SimReadTail = ${function:Read-Tail}

# Seconds that an ordinary call takes, a question to the management service, and one that it does not answer in time (the script's own limit).
$SimCallSeconds = 0.02
$SimQuerySeconds = 0.3
$SimQueryLimit = 15

function Enter-SimCall($Seconds) {
  Assert-SimLives
  Step-SimTime $Seconds
  if ($SimMe.FollowUp) {
    if ($World.Debt -gt $SimRunLimit) { throw 'the bench: a look of the follow-up does not end' }
  }
  elseif ($World.Clock - $World.Run.Began -gt $SimRunLimit) {
    $World.Run.Hangs = $true
    Close-SimOwner $SimMe
  }
  Assert-SimLives
}

# The script may catch this; then the next call throws it once more. What it says is heard by nobody.
function Assert-SimLives { if ($SimMe.Dead) { throw (New-Object -TypeName System.OperationCanceledException -ArgumentList 'the bench: this process has been killed') } }

function Write-SimCall($Text) { Write-SimTrace $SimMe.Name $Text }

# ---- time, and who this is -------------------------------------------------------------------------------------------------------------------------------

function Get-Now {
  Enter-SimCall $SimCallSeconds
  $World.Clock + $World.Debt
}

function Get-TimeOfDay {
  Enter-SimCall $SimCallSeconds
  Get-SimTimeOfDay $World.Clock
}

function Wait-Seconds($Seconds) { Enter-SimCall $Seconds }

function Get-OwnId { $SimMe.Process.Id }

function Get-Folder($Name) {
  if ($Name -eq 'CommonApplicationData') { return $World.ProgramData }
  if ($Name -eq 'System') { return $World.System }
  throw "the bench: there is no folder $Name"
}

function Test-Administrator {
  Enter-SimCall $SimCallSeconds
  $World.Administrator
}

# ---- questions -------------------------------------------------------------------------------------------------------------------------------------------

# What fails at this question, if anything does: 'throw', 'hang' (its time runs out), 'slow' (5 s, and then an answer), 'empty', 'stale' (what was true before the latest
# change), 'no-date', 'leave-out' (the process of the service), 'leave-ruby'.
function Get-SimTrouble($Of) {
  foreach ($trouble in @($World.Troubles)) {
    if ($trouble.Of -ne $Of -or $trouble.Count -le 0) { continue }
    if ($null -ne $trouble.When -and -not (& $trouble.When)) { continue }
    $trouble.Count--
    if ($trouble.How -eq 'slow') { Enter-SimCall 5 }
    if ($trouble.How -eq 'hang') { Enter-SimCall $SimQueryLimit }
    if ($trouble.How -eq 'throw' -or $trouble.How -eq 'hang') {
      Write-SimCall "asks for $Of -> error"
      throw (New-Object -TypeName System.InvalidOperationException -ArgumentList 'The RPC server is unavailable.')
    }
    return $trouble.How
  }
  ''
}

function Get-ServiceRecord {
  Enter-SimCall $SimQuerySeconds
  $trouble = Get-SimTrouble 'service'
  $record = Get-SimRecord
  if ($trouble -eq 'stale' -and $null -ne $World.Service.Before) { $record = $World.Service.Before }
  if ($null -eq $record -or $trouble -eq 'empty') {
    Write-SimCall 'Get-ServiceRecord -> nothing'
    return
  }
  Write-SimCall "Get-ServiceRecord -> $($record.State), process $($record.ProcessId) $trouble"
  New-Object -TypeName PSObject -Property @{
    Name = $record.Name; State = $record.State; ProcessId = [uint32]$record.ProcessId; StartMode = $record.StartMode; PathName = $record.PathName
  }
}

function Get-ProcessRecords {
  Enter-SimCall $SimQuerySeconds
  $trouble = Get-SimTrouble 'processes'
  Write-SimCall "Get-ProcessRecords $trouble"
  if ($trouble -eq 'empty') { return }
  foreach ($process in @($World.Processes)) {
    if ($trouble -eq 'leave-out' -and $process -eq $World.Service.Process) { continue }
    if ($trouble -eq 'leave-ruby' -and $process.Name -like 'ruby*') { continue }
    # As Windows' management service gives it: in local time.
    $created = $process.Created.ToLocalTime()
    if ($trouble -eq 'no-date') { $created = $null }
    New-Object -TypeName PSObject -Property @{
      Name = $process.Name; ProcessId = [uint32]$process.Id; ParentProcessId = [uint32]$process.ParentId; CreationDate = $created
      WorkingSetSize = [uint64]$process.Memory; CommandLine = $process.CommandLine
    }
  }
}

function Get-ServiceState {
  Enter-SimCall $SimCallSeconds
  $record = Get-SimRecord
  $state = ''
  if ($null -ne $record) { $state = $record.State -replace ' ', '' }
  Write-SimCall "Get-ServiceState -> $state"
  $state
}

function Test-Alive($Id) {
  Enter-SimCall $SimCallSeconds
  if (-not $SimMe.Processes.ContainsKey("$Id")) {
    $process = Get-SimProcess $Id
    if ($null -eq $process) { return $false }
    # Windows' own: no handle of it.
    if ($Id -le 4) { return $true }
    $SimMe.Processes["$Id"] = $process
  }
  -not $SimMe.Processes["$Id"].Ended
}

# ---- orders ----------------------------------------------------------------------------------------------------------------------------------------------

# What an order would hurt is looked at in the moment in which it is given.
function Send-ServiceOrder($Verb) {
  Enter-SimCall $SimCallSeconds
  if ($World.Service.Unrunnable -ne '') { throw $World.Service.Unrunnable }
  if ($Verb -eq 'stop') { Add-SimHarm }
  $code = Send-SimOrder $SimMe.Name $Verb
  if ($Verb -eq 'start' -and $code -eq 0 -and $World.Agents.Count -gt 1) {
    $null = $World.Harm.Add(@{ Kind = 'beside'; Text = 'an agent was started while processes of another one lived'; Age = 0 })
  }
  Enter-SimCall $World.Blocks
  $code
}

function Start-FollowUpProcess($Arguments) {
  Enter-SimCall $SimCallSeconds
  Write-SimCall "starts a follow-up: $Arguments"
  if ($World.FollowUpRefused -ne '') { throw $World.FollowUpRefused }
  if ($World.FollowUpComes -ge 0) { Add-SimDue ($World.Clock + $World.FollowUpComes) 'Open-SimFollowUp' $Arguments }
}

# ---- named objects, the registry, files, the line ----------------------------------------------------------------------------------------------------------

function Enter-Mutex($Name) {
  Enter-SimCall $SimCallSeconds
  try { $object = Open-SimObject $SimMe $Name } catch { return $false }
  $entered = Lock-SimMutex $SimMe $object
  Write-SimCall "Enter-Mutex -> $entered"
  $entered
}

function Exit-Mutex($Name) {
  Enter-SimCall $SimCallSeconds
  if ($SimMe.Handles.ContainsKey($Name) -and $SimMe.Handles[$Name].Owner -eq $SimMe) { $SimMe.Handles[$Name].Owner = $null }
}

function Test-MutexHeld($Name) {
  Enter-SimCall $SimCallSeconds
  if (-not $World.Objects.ContainsKey($Name)) { return $false }
  $object = $World.Objects[$Name]
  if ($object.Foreign -or ($null -ne $object.Owner -and $object.Owner -ne $SimMe)) { return $true }
  $object.Abandoned = $false
  $false
}

function New-Signal($Name) {
  Enter-SimCall $SimCallSeconds
  $null = Open-SimObject $SimMe $Name
}

function Test-Signal($Name) {
  Enter-SimCall $SimCallSeconds
  $World.Objects.ContainsKey($Name)
}

function Set-Signal($Name) {
  Enter-SimCall $SimCallSeconds
  if (-not $World.Objects.ContainsKey($Name)) {
    throw (New-Object -TypeName System.Threading.WaitHandleCannotBeOpenedException -ArgumentList 'No handle of the given name exists.')
  }
  if ($World.Objects[$Name].Foreign) { throw (New-Object -TypeName System.UnauthorizedAccessException -ArgumentList "Access to the path '$Name' is denied.") }
  $World.Objects[$Name].Set = $true
  Write-SimCall "Set-Signal $Name"
}

function Test-SignalSet($Name) {
  Enter-SimCall $SimCallSeconds
  $SimMe.Handles[$Name].Set
}

function Get-Mark($Name) {
  Enter-SimCall $SimCallSeconds
  if ($World.Marks.ContainsKey($Name)) { return $World.Marks[$Name] }
}

function Set-Mark($Name, $Value) {
  Enter-SimCall $SimCallSeconds
  Write-SimCall "Set-Mark $Name $Value"
  if ($World.HasRegistry) { $World.Marks[$Name] = "$Value" }
}

# A folder may be out of reach for a moment.
function Get-FilesBelow($Folder) {
  Enter-SimCall $SimCallSeconds
  if ($World.Vanishing -gt 0) {
    $World.Vanishing--
    throw (New-Object -TypeName System.UnauthorizedAccessException -ArgumentList "Access to the path '$Folder' is denied.")
  }
  & $SimFilesBelow $Folder
}

function Read-Tail($Path) {
  Enter-SimCall $SimCallSeconds
  & $SimReadTail $Path
}

function Write-Line($Line) {
  Enter-SimCall $SimCallSeconds
  Write-SimCall $Line
  $null = $World.Run.Lines.Add("$Line")
}
