//! Stories: one event each, through the real handler and the real SDK, against the simulated AWS, in virtual
//! time. They assert what an operator would see (answers, messages, hosts, and when a call is made), never how
//! the code gets there.
//!
//! | file | question |
//! |---|---|
//! | `triggers`, `deployments` | What does an event ask for, and which deployments of which groups are meant? |
//! | `quiet`, `decisions` | Does another deployment run, and which instances are restarted? |
//! | `window`, `refusals`, `groups` | How many at a time; what is refused; several groups of one event. |
//! | `polling`, `waves`, `outcomes` | How commands are watched, also in waves, and what their ends mean. |
//! | `time`, `problems`, `repeats` | Deadlines, calls that fail, what arrives twice. |
//! | `on_premises` | Targets outside EC2, and who bears their names. |
//! | `ec2`, `tags` | What EC2 says of those who cannot be reached, and whom a tag leaves out. |
//! | `calls`, `messages` | The calls that are made, and the views of the report. |

mod support;

mod calls;
mod decisions;
mod deployments;
mod ec2;
mod groups;
mod messages;
mod on_premises;
mod outcomes;
mod platforms;
mod polling;
mod problems;
mod quiet;
mod refusals;
mod repeats;
mod tags;
mod time;
mod triggers;
mod waves;
mod window;
mod wrappings;
