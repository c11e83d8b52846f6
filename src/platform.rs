//! The platforms that there is a restart document for.

use std::fmt;

use aws_sdk_ssm::types::PlatformType as Told;

use crate::text::plain;

/// Characters of a platform that is none of ours.
const MAX_WORD: usize = 100;

/// A platform with a restart document of its own, in the order in which a fleet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Platform {
    /// `restart-agent.sh`.
    Linux,
    /// `restart-agent.ps1`.
    Windows,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows",
        })
    }
}

/// What Systems Manager says of a managed node (`PlatformType` of
/// <https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_InstanceInformation.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformType {
    /// One of ours.
    Ours(Platform),
    /// Another one, such as `MacOS`, or one that is newer than this function.
    Other(String),
    /// It does not say.
    Untold,
}

impl PlatformType {
    /// Reads Systems Manager's word.
    pub fn read(told: Option<&Told>) -> Self {
        match told.map_or("", Told::as_str) {
            "" => Self::Untold,
            "Linux" => Self::Ours(Platform::Linux),
            "Windows" => Self::Ours(Platform::Windows),
            other => Self::Other(plain(other, MAX_WORD)),
        }
    }
}
