// Plays AWS CodeDeploy's agent as a real Windows service, so that document/restart-agent.ps1 meets a real service control manager, real processes and named objects.
//
// C# 5, since the compiler that every Windows has takes no newer one. One program, whose role is told by its file's name:
//
//   codedeploy-agent.exe                  v1's service. It is not the agent: it starts ruby.exe, and hands a stop on
//   codedeploy-agent.exe run-as-service   v2's service, which is the agent itself
//   ruby.exe                              v1's agent
//   hook.exe                              what a lifecycle event runs
//
// How it behaves stands in behaviour.txt beside it, which is read once at each start: so a case can change it for the next agent only. Log and tracking files are
// in the folder above. A child ends when its standard input does, so that nothing outlives whoever started it for long.
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Reflection;
using System.Runtime.InteropServices;
using System.ServiceProcess;
using System.Text;
using System.Threading;

static class Program
{
    public static readonly string Self = Assembly.GetExecutingAssembly().Location;
    public static readonly string Bin = Path.GetDirectoryName(Self);
    public static readonly string Data = Path.GetDirectoryName(Bin);

    static int Main(string[] arguments)
    {
        switch (Path.GetFileNameWithoutExtension(Self))
        {
            case "hook":
                Console.In.ReadToEnd();
                return 0;
            case "ruby":
                return RunRuby();
            default:
                bool isV2 = arguments.Length > 0 && arguments[0] == "run-as-service";
                ServiceBase.Run(isV2 ? (ServiceBase)new SecondGeneration() : new FirstGeneration());
                return 0;
        }
    }

    static int RunRuby()
    {
        Agent agent = new Agent(false, new Behaviour());
        Thread listener = new Thread(delegate()
        {
            // A line asks for the stop. The end without one is that of the service's process.
            if (Console.In.ReadLine() == null)
            {
                Environment.Exit(1);
            }
            agent.AskToStop();
        });
        listener.IsBackground = true;
        listener.Start();
        agent.Run();
        return 0;
    }

    // A child that has no window, and whose standard input is a pipe of ours.
    public static Process StartChild(string file)
    {
        ProcessStartInfo start = new ProcessStartInfo(Path.Combine(Bin, file));
        start.UseShellExecute = false;
        start.CreateNoWindow = true;
        start.RedirectStandardInput = true;
        return Process.Start(start);
    }
}

// The lines `key=number` of behaviour.txt. Seconds, where nothing else is said; 0 is never, or not.
sealed class Behaviour
{
    readonly Dictionary<string, double> values = new Dictionary<string, double>
    {
        { "pending", 2 },  // v1: the service is Start Pending for so long
        { "checks", 2 },   // v2: credentials, region and TLS take so long; the service is Running meanwhile
        { "poll", 4 },     // a long poll lasts so long; CodeDeploy's last 45 to 60
        { "refused", 0 },  // 1: CodeDeploy refuses each poll
        { "fails", 0 },    // v2: a check fails so long after the start; the service then ends in order
        { "crashes", 0 },  // the service's process ends so long after the start, of which it tells nobody
        { "drain", 0 },    // asked to stop, it runs a lifecycle event for so long first
        { "lingers", 3 },  // v1: ruby.exe outlives the stopped service by so long
        { "deadlock", 0 }, // 1: v1's service never gets past its stop
        { "hook", 0 },     // 1: a lifecycle event runs all the time
    };

    public Behaviour()
    {
        foreach (string line in File.ReadAllLines(Path.Combine(Program.Bin, "behaviour.txt")))
        {
            string[] parts = line.Split('=');
            if (parts.Length != 2 || !values.ContainsKey(parts[0]))
            {
                throw new InvalidDataException("behaviour.txt: " + line);
            }
            values[parts[0]] = double.Parse(parts[1], CultureInfo.InvariantCulture);
        }
    }

    public bool Is(string key) { return values[key] != 0; }

    public TimeSpan Time(string key) { return TimeSpan.FromSeconds(values[key]); }

    // The process ends as one that is killed: nothing is told, nothing cleaned up.
    public void PlanCrash()
    {
        if (!Is("crashes"))
        {
            return;
        }
        Thread crash = new Thread(delegate()
        {
            Thread.Sleep(Time("crashes"));
            Process.GetCurrentProcess().Kill();
        });
        crash.IsBackground = true;
        crash.Start();
    }
}

// What polls, logs and runs lifecycle events, in either generation's words.
sealed class Agent
{
    const string Host = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0";
    const string Denied = "User: arn:aws:sts::123456789012:assumed-role/web/i-0123456789abcdef0 is not authorized to perform: codedeploy-commands-secure:PollHostCommand";
    const string Poller = "InstanceAgent::Plugins::CodeDeployPlugin::CommandPoller: ";

    readonly bool isV2;
    readonly Behaviour behaviour;
    readonly int id = Process.GetCurrentProcess().Id;
    readonly ManualResetEvent asked = new ManualResetEvent(false);

    public Agent(bool isV2, Behaviour behaviour)
    {
        this.isV2 = isV2;
        this.behaviour = behaviour;
    }

    public void AskToStop() { asked.Set(); }

    // Gives whether it was asked to stop; else it ended by itself.
    public bool Run()
    {
        if (!Begin())
        {
            return false;
        }
        Process hook = behaviour.Is("hook") ? StartHook() : null;
        while (!asked.WaitOne(behaviour.Time("poll")))
        {
            LogPoll();
        }
        if (!isV2)
        {
            Log("INFO", "CodeDeploy Instance Agent Service: stopping the agent");
        }
        if (hook == null && behaviour.Is("drain"))
        {
            hook = StartHook();
        }
        Thread.Sleep(behaviour.Time("drain"));
        if (hook != null)
        {
            EndHook(hook);
        }
        if (isV2)
        {
            Log("INFO", "Polling loop stopped");
        }
        else
        {
            Thread.Sleep(behaviour.Time("lingers"));
        }
        return true;
    }

    // Gives whether it may poll: v2 checks first.
    bool Begin()
    {
        if (!isV2)
        {
            Log("INFO", "CodeDeploy Instance Agent Service: started");
            return true;
        }
        Log("INFO", "Worker " + id + " starting");
        if (behaviour.Is("fails"))
        {
            Thread.Sleep(behaviour.Time("fails"));
            Log("ERROR", "Failed to load credentials: dispatch failure: timeout: HTTP connect timeout occurred after 10s: http://169.254.169.254");
            return false;
        }
        Thread.Sleep(behaviour.Time("checks"));
        Log("INFO", "Resolved region: eu-west-1");
        Log("INFO", "TLS verification passed for https://codedeploy-commands.eu-west-1.amazonaws.com");
        Log("INFO", "Worker " + id + " entering polling loop");
        return true;
    }

    // v1 writes every poll that was answered, v2 only those that failed.
    void LogPoll()
    {
        bool refused = behaviour.Is("refused");
        if (isV2)
        {
            if (refused)
            {
                Log("ERROR", "Error polling for host commands: service error: AccessDeniedException: " + Denied);
            }
            return;
        }
        string seconds = behaviour.Time("poll").TotalSeconds.ToString("0.000000", CultureInfo.InvariantCulture);
        string poll = "[Aws::CodeDeployCommand::Client " + (refused ? "400 " : "200 ") + seconds + " 0 retries] poll_host_command(host_identifier:\"" + Host + "\")";
        const string Error = "Aws::CodeDeployCommand::Errors::AccessDeniedException";
        Log("INFO", refused ? poll + " " + Error + " " + Denied : poll);
        if (refused)
        {
            const string Trace = "C:/Windows/TEMP/ocr1.tmp/lib/seahorse/client/plugins/raise_response_errors.rb:17:in `call'";
            Log("ERROR", Poller + "Error polling for host commands: " + Error + " - " + Denied + " - " + Trace);
            Log("ERROR", Poller + "Cannot reach InstanceService: " + Error + " - " + Denied);
        }
    }

    static string TrackingFile { get { return Path.Combine(Program.Data, "ongoing-deployment", "d-TEST00001"); } }

    static Process StartHook()
    {
        Directory.CreateDirectory(Path.GetDirectoryName(TrackingFile));
        File.WriteAllText(TrackingFile, "lifecycle event");
        return Program.StartChild("hook.exe");
    }

    static void EndHook(Process hook)
    {
        hook.StandardInput.Close();
        hook.WaitForExit();
        File.Delete(TrackingFile);
    }

    // v1 writes local time and its process's number, v2 UTC. Readers and a second agent may have the file open.
    void Log(string level, string text)
    {
        string line = isV2
            ? string.Format(CultureInfo.InvariantCulture, "{0:yyyy-MM-dd HH:mm:ss} {1,5} {2}", DateTime.UtcNow, level, text)
            : string.Format(CultureInfo.InvariantCulture, "{0:yyyy-MM-ddTHH:mm:ss} {1,-5} [codedeploy-agent({2})]: {3}", DateTime.Now, level, id, text);
        string folder = Path.Combine(Program.Data, "log");
        Directory.CreateDirectory(folder);
        byte[] bytes = Encoding.ASCII.GetBytes(line + "\n");
        string file = Path.Combine(folder, isV2 ? "codedeploy-agent.log" : "codedeploy-agent-log.txt");
        using (FileStream stream = new FileStream(file, FileMode.Append, FileAccess.Write, FileShare.ReadWrite | FileShare.Delete))
        {
            stream.Write(bytes, 0, bytes.Length);
        }
    }
}

// Start Pending while its Ruby is unpacked, Stop Pending while its agent drains, and gone before its agent is.
sealed class FirstGeneration : ServiceBase
{
    readonly Behaviour behaviour = new Behaviour();
    Process ruby;

    public FirstGeneration()
    {
        ServiceName = "codedeployagent";
        AutoLog = false;
    }

    protected override void OnStart(string[] arguments)
    {
        Thread.Sleep(behaviour.Time("pending"));
        ruby = Program.StartChild("ruby.exe");
        behaviour.PlanCrash();
    }

    protected override void OnStop()
    {
        if (behaviour.Is("deadlock"))
        {
            Thread.Sleep(Timeout.Infinite);
        }
        ruby.StandardInput.WriteLine("stop");
        Thread.Sleep(behaviour.Time("drain"));
    }
}

// Running at once, whatever its checks say; and Running until it has drained.
sealed class SecondGeneration : ServiceBase
{
    readonly Behaviour behaviour = new Behaviour();
    readonly Agent agent;
    readonly Thread worker;
    volatile bool endsByItself;

    public SecondGeneration()
    {
        ServiceName = "codedeployagent";
        AutoLog = false;
        agent = new Agent(true, behaviour);
        worker = new Thread(Work);
        worker.IsBackground = true;
    }

    void Work()
    {
        if (!agent.Run())
        {
            endsByItself = true;
            Stop();
        }
    }

    protected override void OnStart(string[] arguments)
    {
        worker.Start();
        behaviour.PlanCrash();
    }

    protected override void OnStop()
    {
        if (endsByItself)
        {
            return;
        }
        // ServiceBase has just told Stop Pending, which v2's service library does not do: this takes it back.
        ServiceStatus status = new ServiceStatus();
        status.serviceType = 0x10; // SERVICE_WIN32_OWN_PROCESS
        status.currentState = 4;   // SERVICE_RUNNING
        status.controlsAccepted = 1; // SERVICE_ACCEPT_STOP
        SetServiceStatus(ServiceHandle, ref status);
        agent.AskToStop();
        worker.Join();
    }

    // https://learn.microsoft.com/en-us/windows/win32/api/winsvc/ns-winsvc-service_status
    [StructLayout(LayoutKind.Sequential)]
    struct ServiceStatus
    {
        public uint serviceType;
        public uint currentState;
        public uint controlsAccepted;
        public uint win32ExitCode;
        public uint serviceSpecificExitCode;
        public uint checkPoint;
        public uint waitHint;
    }

    [DllImport("advapi32.dll", SetLastError = true)]
    [return: MarshalAs(UnmanagedType.Bool)]
    static extern bool SetServiceStatus(IntPtr handle, ref ServiceStatus status);
}
