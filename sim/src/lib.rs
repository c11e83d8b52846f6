//! AWS as the restarter sees it: plain data, a clock and the wire.
//!
//! A [`World`] holds a [`State`] and answers the fourteen operations that the restarter calls, either
//! in process, behind the real SDK's HTTP seam ([`World::sdk_config`]), or on a loopback port
//! ([`server`]). What happens on the hosts happens in the world's time, which under tokio's paused
//! clock is virtual. The world is written from AWS's side and shares no code with its client.
//!
//! | module | what it holds |
//! |---|---|
//! | `state` | the plain data, which is also the format of a world file |
//! | `scenario` | conveniences to make and reach a state |
//! | `clock` | where the world's time comes from |
//! | `world` | the handle: now, read and change, calls, messages, transcript |
//! | `host` | a host under the document's contract, as a queue of moments at which it decides |
//! | `wire` | JSON 1.1, query XML and EC2's dialect of it: requests in, answers and errors out |
//! | `service` | which service answers which operation, faults, pages, reading of input |
//! | `codepipeline`, `codedeploy`, `autoscaling`, `ssm`, `ec2`, `sns` | the services themselves |
//! | `connector` | the SDK's HTTP client that ends in the world |
//! | `server` | the loopback port |

mod autoscaling;
mod clock;
mod codedeploy;
mod codepipeline;
mod connector;
mod ec2;
mod host;
mod scenario;
pub mod server;
mod service;
mod sns;
mod ssm;
mod state;
#[cfg(test)]
mod tests;
mod wire;
mod world;

pub use scenario::{
    APPLICATION, AUTO_SCALING_GROUP, DEPLOYMENT, DEPLOYMENT_GROUP, DOCUMENT, TOPIC,
    WINDOWS_DOCUMENT, documents, instance_id, managed_id,
};
pub use ssm::PARAMETERS;
pub use state::{
    Action, Agent, AgentFault, Answer, AutoScalingGroup, Command, Deployment, DeploymentGroup,
    Document, DocumentKind, Execution, Fault, FaultKind, Host, Invocation, Job, JobKind, Lost,
    Member, Message, PageSizes, Pipeline, Region, SsmAgent, SsmAgentFault, State, TagFilter,
    Target, Topic,
};
pub use world::{Call, World};
