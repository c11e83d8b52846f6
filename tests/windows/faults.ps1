# Faults, planted one by one in the script's text by `run.ps1 -Faults`: From stands there exactly once and is replaced by To. Some case has to fall; Case is the one
# that is meant to, and is played first.

$SimFaults = @()

function Add-Fault($Name, $Case, $From, $To) { $script:SimFaults += @{ Name = $Name; Case = $Case; From = $From; To = $To } }

# ---- what must not be disturbed --------------------------------------------------------------------------------------------------------------------------

Add-Fault 'a lifecycle event is not looked for' 'a hook runs all the time' `
  "if (`$lifecycleEvent -eq '' -and `$installer -eq '') { `$looks++ }" "if (`$installer -eq '') { `$looks++ }"
Add-Fault 'one look is enough' 'hook after hook, with 2 s between two' '$QuietLooks = 3 ' '$QuietLooks = 1 '
Add-Fault 'nobody looks again when the follow-up has come up' 'a hook begins while the follow-up comes up' `
  "  # It took some seconds.`n  Wait-UntilQuiet" '  # It took some seconds.'
Add-Fault 'a relative root is looked for below ProgramData alone' 'v2 reads a relative root from the folder of Windows' `
  '  [System.IO.Path]::Combine((Get-Folder ''System''), $plain)' ''
Add-Fault 'tracking files of any age count' 'a tracking file that is older than a day' '.AddDays(-1)' '.AddDays(-10)'
Add-Fault 'the tracking file of a dead agent counts' 'an agent that died left its tracking file' ' -and (Get-Agent).Identity -ne ''''' ''
Add-Fault 'the first of several keys counts' "a hook below: :root_dir: ELSEWHERE / :root_dir: 'ROOT'" `
  '$found[$key] = "$($Matches[''value''])"' 'if (-not $found.ContainsKey($key)) { $found[$key] = "$($Matches[''value''])" }'
Add-Fault 'an installer is not looked for' 'Windows Installer works all the time' 'if (Test-MutexHeld $InstallerName) { return ''Windows Installer'' }' ''
Add-Fault 'the folder is read but once' 'the folder of tracking files cannot be read, once' '@(Get-Answer { Get-FilesBelow $folder })' '@(Get-FilesBelow $folder)'

# ---- the lock and the follow-up --------------------------------------------------------------------------------------------------------------------------

Add-Fault 'the lock is not waited for' 'the lock is held' 'while (-not (Enter-Mutex $LockName)) {' 'while (-not (Enter-Mutex "$LockName-$(Get-OwnId)")) {'
Add-Fault 'the stop is ordered although the follow-up has died' 'the follow-up dies before the stop is asked for' `
  "      Set-Signal `$AskedName`n" "      try { Set-Signal `$AskedName } catch { `$code = `$null }`n"
Add-Fault 'the follow-up is not told that the stop is asked for' 'killed after it asked for the stop' `
  "      Set-Signal `$AskedName`n      `$code = Send-Order" '      $code = Send-Order'
Add-Fault 'the follow-up starts whatever has stopped' 'an operator stops the service when the late follow-up lives' `
  'if (-not (Test-SignalSet $State.Asked)) { return' 'if ($false) { return'
Add-Fault 'the follow-up does not wait for an installer' 'an installer works when the follow-up wants to start the service' `
  'if ($installs -and $now - $State.StoppedAt -lt 1800) { return $false }' ''
Add-Fault 'the follow-up orders one start' 'the follow-up has to order the start three times' `
  '-contains $code -or $State.Starts -ge 20' '-contains $code -or $State.Starts -ge 1'
Add-Fault 'the follow-up fights who disabled the service' 'somebody disables the service while it drains for long' `
  '(1058, 1060, 1072) -contains $code -or' '$false -or'
Add-Fault 'the follow-up goes by its run''s variables' 'killed after it asked for the stop' 'if ($State.Old -eq 0 -or -not (Test-Alive $State.Old)) { return $true }' `
  'if ($Old.ProcessId -eq 0) { return $true }'
Add-Fault 'the follow-up lives for as long as an agent ever drains' 'a drain of a minute at most is configured: the follow-up does not live for two hours' `
  '(Get-Now) + [long]$seconds + $DrainMargin' '(Get-Now) + 7200 + $DrainMargin'
Add-Fault 'the follow-up goes on after the restart' 'the question for the service fails each time after the start' 'if (@(30, 32, 34) -notcontains $Verdict.Code) { Stop-FollowUp }' 'if ($false) { Stop-FollowUp }'
Add-Fault 'the follow-up believes that a number stays a process''s' 'killed before the follow-up comes up, and its number is given away' `
  ' -or -not (Test-MutexHeld $LockName) }' ' }'
Add-Fault '34 promises a start that nobody makes' 'the stop never ends, and the follow-up dies; no other comes up' `
  'if ((Test-FollowUp) -or (Start-FollowUp $Agent)) {' 'if ($true) {'
Add-Fault 'a stop that is under way is not waited for' 'somebody asked for the stop: there is no follow-up' `
  '$stops = $agent.State -eq ''Stop Pending''' '$stops = $false'

# ---- the restart -----------------------------------------------------------------------------------------------------------------------------------------

Add-Fault 'a disabled service is stopped' 'the service is disabled' 'if ($agent.StartMode -eq ''Disabled'')' 'if ($agent.StartMode -eq ''None'')'
Add-Fault 'a stop that was refused for the moment is not repeated' 'the stop cannot be taken at first' `
  '($code -eq 1061 -and $agent.State -ne ''Stop Pending'')) {' '$false) {'
Add-Fault 'the old processes are not waited for' 'its Ruby outlives Stopped for 20 s' '$SurvivorLimit = 30 ' '$SurvivorLimit = 0 '
Add-Fault 'who survives is not told' 'its Ruby stays for ever' 'if ($survivors.Count -gt 0) {' 'if ($false) {'
Add-Fault 'one start is tried' 'the first start gives 1053' '$StartAttempts = 3 ' '$StartAttempts = 1 '
Add-Fault 'a question is asked once' 'the question for the service fails twice' 'catch { if ($try -ge 3) { throw } }' 'catch { throw }'
Add-Fault 'an empty list of processes is an answer' 'the list of processes lacks the agent each time' `
  '($try -ge 3 -and $agent.Identity -ne '''')) { return $agent }' '$true) { return $agent }'
Add-Fault 'an empty list of processes is no survivors' 'each second list of processes is empty after the start, and the old Ruby stays for ever' `
  '-notcontains (Get-OwnId)) { throw' '-contains -1) { throw'
Add-Fault 'rubyw.exe is no agent' 'its rubyw.exe holds 300 MiB, and 200 is the least' ', ''ruby.exe'', ''rubyw.exe''' ', ''ruby.exe'''

# ---- the proof -------------------------------------------------------------------------------------------------------------------------------------------

Add-Fault 'running for 12 s is healthy' 'the new agent is deaf: denied' `
  'if ($Seconds -lt $Stable) { return }' 'if ($Seconds -lt $Stable) { return } else { return New-Disproof 0 '''' '''' }'
Add-Fault 'an old line with the same number counts' 'the new agent is deaf, and has the numbers of the old one, which was heard' `
  '-and $at -lt $created.AddSeconds(-2)) { continue }' '-and $false) { continue }'
Add-Fault 'local time is taken for UTC' 'idle' '$today = $today.ToLocalTime()' ''
Add-Fault 'a good poll is proof whoever made it' 'the end of summer time in the proof of a deaf agent' 'elseif ($line -cnotmatch $number) { continue }' ''
Add-Fault 'the words of a hook count' 'a hook that fails says nothing of polls' 'if ($line -clike ''*put_host_command_complete(*'') { continue }' ''
Add-Fault 'v2 is healthy before it polls' 'v2, no credentials each time' '$entered = $ours -and $Matches[2] -ceq ''entering polling loop''' '$entered = $ours'
Add-Fault 'a log that tells nothing is a deaf agent' 'there is no log' 'if ($SameSeconds -ge $BlindLimit) { return $healthy }' ''
Add-Fault 'it does not say that no poll was seen' 'there is no log' 'Complete-Run 0 $Result $Unproven' 'Complete-Run 0 $Result '''''
Add-Fault 'somebody else''s restart is a failure' 'somebody restarts it in the proof, in a moment' 'if ($changes -gt $StartAttempts)' 'if ($changes -gt 1)'
Add-Fault 'a mark counts for any process' 'somebody replaced the marked agent since' '$noted[0] -ceq $Identity -and' ''
Add-Fault 'a fresh agent is taken for healthy' 'fresh, and deaf since' `
  'if (Test-Fresh $agent) { Complete-Proven ''already-restarted'' @() }' 'if (Test-Fresh $agent) { Complete-Run 0 ''already-restarted'' '''' }'
