# One process that runs the script, as `& process.ps1`: with a script scope of its own, so that nothing of it is left for the next.
param($World, $SimRun)

foreach ($SimName in @($SimRun.Parameters.Keys)) { Set-Variable -Name $SimName -Value $SimRun.Parameters[$SimName] }
. $World.Text
. (Join-Path $World.Bench 'seam.ps1')
$SimMe = $SimRun.Owner

try {
  $SimRun.Stray = @(Invoke-Script @())
  $SimRun.ExitCode = $ExitCode
}
catch { $SimRun.Failure = "$($_.Exception.Message) ($($_.InvocationInfo.PositionMessage))" }
