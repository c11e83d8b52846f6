# The cases: a name, what is done, and what must hold. Each begins without the service, and is cleared away afterwards.
#
# Where the script is to give up waiting for a stop, the drain is longer than the 150 s after which it does, by enough to look around; all other times are as short
# as the script's own limits let them be. What an agent does is in agent.cs, the words and codes are those of document/README.md.

$Cases = @(
  @{ Name = 'not there'; Do = {
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 5 } 10 'not-installed' '^there is no service codedeployagent$'
      Assert-NoFollowUp
    } },

  @{ Name = 'v1: restarted, and by its mark fresh after that'; Do = {
      # Both runs have the same parameters: what differs is the mark that the first one leaves. Nothing is older than the boot, so that has to be longer ago.
      Wait-For 120 'the boot is 110 s ago' { [System.Diagnostics.Stopwatch]::GetTimestamp() / [System.Diagnostics.Stopwatch]::Frequency -gt 110 }
      $now = Get-Seconds
      $parameters = @{ TRIGGERED_AT = $now - 100; SENT_AT = $now; BUSY_WAIT_SECONDS = 30 }
      $before = Start-Agent 'v1' @{}
      Invoke-Restart $parameters 0 'restarted' '^$'
      Assert-NoFollowUp
      Assert-Replaced $before 'v1'
      $new = Get-Standing
      Invoke-Restart $parameters 0 'already-restarted' '^$'
      Assert-Untouched $new
    } },

  @{ Name = 'v2: restarted'; Do = {
      $before = Start-Agent 'v2' @{}
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 0 'restarted' '^$'
      Assert-NoFollowUp
      Assert-Replaced $before 'v2'
    } },

  @{ Name = 'stopped: started'; Do = {
      Install-Agent 'v2' @{}
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 0 'started' '^$'
      Assert-NoFollowUp
      Assert-Replaced @{ Id = 0 } 'v2'
    } },

  @{ Name = 'small enough: left alone'; Do = {
      $before = Start-Agent 'v1' @{}
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30; MIN_MEMORY_MIB = 4000 } 0 'below-threshold' '^$'
      Assert-NoFollowUp
      Assert-Untouched $before
    } },

  @{ Name = 'disabled: left alone'; Do = {
      $before = Start-Agent 'v2' @{}
      Set-Service -Name $ServiceName -StartupType 'Disabled'
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 12 'preflight-failed' 'is disabled; the agent was left alone$'
      Assert-NoFollowUp
      Assert-Untouched $before
    } },

  @{ Name = 'a hook runs: left alone'; Do = {
      $before = Start-Agent 'v1' @{ hook = 1 }
      Assert-That ($before.Names -eq 'codedeploy-agent.exe hook.exe ruby.exe') "processes: $($before.Names)"
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 10 } 20 'busy' 'd-TEST00001'
      Assert-NoFollowUp
      Assert-Untouched $before
    } },

  @{ Name = 'another run holds the lock: left alone'; Do = {
      $before = Start-Agent 'v2' @{}
      Invoke-Holding $LockName { Invoke-Restart @{ BUSY_WAIT_SECONDS = 5 } 22 'restart-running' 'holds the lock' }
      Assert-NoFollowUp
      Assert-Untouched $before
    } },

  @{ Name = 'Windows Installer works: left alone'; Do = {
      $before = Start-Agent 'v2' @{}
      Invoke-Holding 'Global\_MSIExecute' { Invoke-Restart @{ BUSY_WAIT_SECONDS = 5 } 21 'update-running' '^Windows Installer' }
      Assert-NoFollowUp
      Assert-Untouched $before
    } },

  @{ Name = 'v1: CodeDeploy refuses the new one''s polls'; Do = {
      $before = Start-Agent 'v1' @{}
      Set-Behaviour @{ refused = 1 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 33 'agent-unhealthy' '^CodeDeploy does not hear the agent; log: .*AccessDeniedException'
      Assert-NoFollowUp
      Assert-Replaced $before 'v1'
    } },

  @{ Name = 'v2: CodeDeploy refuses the new one''s polls'; Do = {
      $before = Start-Agent 'v2' @{}
      Set-Behaviour @{ refused = 1 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 33 'agent-unhealthy' '^CodeDeploy does not hear the agent; log: .*AccessDeniedException'
      Assert-NoFollowUp
      Assert-Replaced $before 'v2'
    } },

  @{ Name = 'v2: ends 20 s after each start'; Do = {
      $null = Start-Agent 'v2' @{}
      Set-Behaviour @{ fails = 20 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 32 'agent-down' '^the service does not run; log: .*Failed to load credentials'
      Assert-NoFollowUp
      Assert-Standing 'Stopped' 0
    } },

  @{ Name = 'v1: crashes 20 s after each start'; Do = {
      $null = Start-Agent 'v1' @{}
      # It does not live long enough for the end of a poll.
      Set-Behaviour @{ crashes = 20; poll = 45 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 32 'agent-down' '^the service does not run'
      Assert-NoFollowUp
      Assert-Standing 'Stopped' 0
    } },

  @{ Name = 'v2: drains for 220 s'; Do = {
      # What v2 does shows in no state: a run that comes later is told by the follow-up alone.
      $before = Start-Agent 'v2' @{ drain = 220 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 34 'draining' 'a new agent starts when it has stopped$'
      Assert-FollowUpLives
      Assert-Standing 'Running' $before.Id
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 5 } 34 'draining' '^an earlier run asked the agent to stop'
      Assert-FollowUpLives
      Assert-Standing 'Running' $before.Id
      Assert-FollowUpStarts $before 'v2' 180
    } },

  @{ Name = 'v1: drains for 220 s, and its follow-up is ended'; Do = {
      # The script must notice, and put another one in place.
      $before = Start-Agent 'v1' @{ drain = 220 }
      $run = Start-Restart @{ BUSY_WAIT_SECONDS = 30 }
      Wait-ForStop
      Stop-FollowUpProcess
      Complete-Restart $run
      Assert-Run $run 34 'draining' 'a new agent starts when it has stopped$'
      Assert-FollowUpLives
      Assert-Standing 'Stop Pending' $before.Id
      Assert-FollowUpStarts $before 'v1' 180
    } },

  @{ Name = 'v1: its stop never ends'; Do = {
      $before = Start-Agent 'v1' @{ deadlock = 1 }
      Invoke-Restart @{ BUSY_WAIT_SECONDS = 30 } 34 'draining' 'a new agent starts when it has stopped$'
      Assert-FollowUpLives
      Assert-Standing 'Stop Pending' $before.Id
      Set-Behaviour @{}
      Stop-ServiceProcess
      Assert-FollowUpStarts $before 'v1' 60
    } },

  @{ Name = 'the script is killed after it asked for the stop'; Do = {
      $before = Start-Agent 'v1' @{ drain = 30 }
      $run = Start-Restart @{ BUSY_WAIT_SECONDS = 30 }
      Wait-ForStop
      # While somebody has it open, Windows keeps the mutex of a process that was killed, as abandoned.
      $lock = [System.Threading.Mutex]::OpenExisting($LockName)
      try {
        $run.Process.Kill()
        Assert-That ($run.Out.Wait(5000) -and $run.Out.Result -eq '') 'somebody holds the output of a killed script, or it had said something'
        Assert-FollowUpLives
        Assert-FollowUpStarts $before 'v1' 90
        $new = Get-Standing
        # At 1 every agent counts as fresh.
        Invoke-Restart @{ TRIGGERED_AT = 1; SENT_AT = (Get-Seconds); BUSY_WAIT_SECONDS = 30 } 0 'already-restarted' '^$'
        Assert-Untouched $new
      }
      finally { $lock.Dispose() }
    } }
)
