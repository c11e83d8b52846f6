//! Stories: one event each, through the real handler and the real SDK, against the simulated AWS, in virtual
//! time. They assert what an operator would see (answers, messages, hosts), never how the code gets there.

mod support;

mod decisions;
mod journey;
mod messages;
mod outcomes;
mod triggers;
mod waves;
