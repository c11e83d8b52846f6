//! The oracle: what must be true of every run, judged by what the world saw and did. It knows the rules from the
//! outside and shares no decision with the function, but for how many agents a run planned to restart: of that number the
//! settings' percentages are.
//!
//! | module | what it judges | invariants |
//! |---|---|---|
//! | `subject` | which groups an event is about | |
//! | `candidates` | which instances are of a group, and where each stands at a time | |
//! | `report` | what the function says | 0, 1, 2, 10 |
//! | `messages` | what it tells: to whom it matters, and all of it | 2, 7 |
//! | `claims` | whether an agent that is called fresh and healthy is | 3 |
//! | `hosts` | what happened on the hosts | 4, 6 |
//! | `sends` | what was sent: to whom, and when | 6 |
//! | `platforms` | by which document, and who is left for want of one | 1, 6 |
//! | `tags` | whether the tag that is asked for decides, by EC2's word | 2, 6, 10 |
//! | `chains` | whether groups that share instances follow each other | 6 |
//! | `window` | how many at a time, and after how many failures | 5 |
//! | `calls` | the calls of one run | 7, 8 |
//! | `ends` | whether what is told of a command is what became of it | 9 |

mod calls;
mod candidates;
mod chains;
mod claims;
mod ends;
mod hosts;
mod messages;
mod platforms;
mod report;
mod sends;
mod subject;
mod tags;
mod window;

use std::collections::BTreeSet;

use sim::{Call, Command, State};

use crate::deliveries::{Course, Delivery, End, Invocation, Meaning};
use crate::fleet::Scene;
use candidates::{Standings, standings};
use subject::names;

/// Nothing below is kept by doing nothing.
const CALM: &str = "0 in calm weather every agent is restarted";
/// Every candidate once, in one outcome; what was not resolved has a problem.
const ACCOUNTED: &str = "1 every candidate is accounted for";
/// What needs attention is told.
const TOLD: &str = "2 never silence";
/// What is called fresh and healthy is.
const TRUE: &str = "3 a claim of a fresh, healthy agent is true";
/// One restart for one deployment.
const ONCE: &str = "4 no agent is restarted twice for one deployment";
/// Window and brake.
const RATE: &str = "5 window and brake";
/// Nobody is sent to who must not be, nothing is killed.
const UNHARMED: &str = "6 nobody else is touched, nothing is killed";
/// Deadline, number and rate of calls, limits of the APIs.
const LIMITS: &str = "7 deadline, calls and limits";
/// Dry runs and ignored events.
const READ_ONLY: &str = "8 a dry run and an ignored event write nothing";

/// What Systems Manager held of a command, and what the function makes of it.
const ENDS: &str = "9 what is told of a command is what became of it";
/// Whoever is called needs to be.
const NEEDED: &str = "10 nobody is called for what does not concern them";

/// Outcomes about which nobody needs to hear.
const FINE: [&str; 5] = [
    "restarted",
    "started",
    "already-restarted",
    "below-threshold",
    "skipped",
];
/// A little time, in seconds: what a call takes, and what rounding to milliseconds takes.
const MOMENT: f64 = 1.0;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was expected, and what was seen.
    pub what: String,
}

/// Everything that the oracle judges by.
pub struct Evidence<'a> {
    scene: &'a Scene,
    course: &'a Course,
    /// The account at the end.
    end: &'a State,
    calls: &'a [Call],
    deliveries: Vec<&'a Delivery>,
    standings: Standings<'a>,
    /// The commands, each with the call that made it.
    commands: Vec<(&'a Call, &'a Command)>,
    /// The questions for the deployments of a group that were answered.
    looks: Vec<&'a Call>,
    violations: Vec<Violation>,
}

/// Judges a run. Of each invariant, the first violation is told.
pub fn judge(scene: &Scene, course: &Course) -> Vec<Violation> {
    course.world.read(|end, calls| {
        let mut evidence = Evidence::new(scene, course, end, calls);
        for (number, invocation) in course.invocations.iter().enumerate() {
            evidence.invocation(number, invocation);
        }
        evidence.fates();
        evidence.restarts();
        evidence.scripts();
        let mut found = evidence.violations;
        found.dedup_by_key(|violation| violation.invariant);
        let mut seen = BTreeSet::new();
        found.retain(|violation| seen.insert(violation.invariant));
        found
    })
}

impl<'a> Evidence<'a> {
    fn new(scene: &'a Scene, course: &'a Course, end: &'a State, calls: &'a [Call]) -> Self {
        let mut commands = Vec::new();
        for (name, region) in &end.regions {
            let sent = calls
                .iter()
                .filter(|call| call.operation == "SendCommand" && call.status == 200)
                .filter(|call| call.region == *name);
            commands.extend(sent.zip(&region.commands));
        }
        Self {
            scene,
            course,
            end,
            calls,
            deliveries: scene.tracks.iter().flatten().collect(),
            standings: standings(scene),
            commands,
            looks: calls
                .iter()
                .filter(|call| call.operation == "ListDeployments" && call.status == 200)
                .collect(),
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, invariant: &'static str, what: String) {
        self.violations.push(Violation { invariant, what });
    }

    fn invocation(&mut self, number: usize, invocation: &Invocation) {
        let delivery = self.deliveries[invocation.delivery];
        let calls: Vec<&Call> = self
            .calls
            .iter()
            .filter(|c| c.access_key == invocation.key)
            .collect();
        let who = format!("run {number} ({})", delivery.kinds.join(", "));
        self.limits(&who, invocation, &calls);
        self.read_only(&who, delivery, invocation, &calls);
        self.elsewhere(&who, delivery, invocation, &calls);
        let subject = self.subject(delivery, invocation);
        match &invocation.end {
            End::Reported(report, answer) => {
                self.accounted(&who, &subject, invocation, report, answer);
                self.told(&who, invocation, report, answer, &calls);
                self.left(&who, &subject, invocation, report, &calls);
                self.tags(&who, &subject, invocation, report, &calls);
                self.claims(&who, &subject, report);
                self.undocumented(&who, report);
                self.ends(&who, invocation, report, &calls);
                self.brakes(&who, report);
                if delivery.meaning != Meaning::Elsewhere {
                    self.calm(&who, invocation, report);
                }
            }
            End::Ignored => {
                if delivery.meaning == Meaning::Unreadable
                    || subject.problem
                    || !subject.groups.is_empty()
                {
                    self.broken(
                        ACCOUNTED,
                        format!(
                            "{who}: the event was ignored, and concerns {:?}",
                            names(&subject)
                        ),
                    );
                }
            }
            End::Failed("InvalidEvent") if delivery.meaning != Meaning::Unreadable => {
                self.broken(ACCOUNTED, format!("{who}: the event was refused"));
            }
            End::Failed("PublishFailed") => self.unpublished(&who, delivery, &calls),
            End::Lost | End::OutOfTime | End::Failed(_) => {}
        }
        self.sends(&who, &subject, invocation, &calls);
        self.chains(&who, &subject, invocation, &calls);
    }
}
