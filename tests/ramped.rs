//! Every story once more, in a world whose Run Command hands a command out in waves of 1, 2, 4, … instances.
//! It is believed that explicit ids go out at once; no promise may depend on it.

#[path = "stories/main.rs"]
mod stories;
