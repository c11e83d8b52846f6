//! Names and numbers of AWS's, checked once where they come in: a value of these types needs no other check.

use std::fmt;

use serde::Serialize;

/// Text that has passed a check.
macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The checked text; `None` when it has another form.
            pub fn read(text: &str) -> Option<Self> {
                let fits: fn(&str) -> bool = $fits;
                fits(text).then(|| Self(text.to_owned()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked!(
    /// A region's name, as in `eu-west-1`. It becomes part of a host name, so nothing else may pass.
    Region,
    |text| (3..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
);

checked!(
    /// An account id: twelve digits.
    AccountId,
    |text| text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit())
);

checked!(
    /// The id of a managed node: `i-` and 8 to 17 hexadecimal digits of an EC2 instance, `mi-` and 17 of a machine outside
    /// EC2.
    InstanceId,
    |text| {
        let (digits, least) = match text.strip_prefix("mi-") {
            Some(digits) => (Some(digits), 17),
            None => (text.strip_prefix("i-"), 8),
        };
        digits.is_some_and(|digits| {
            (least..=17).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_hexdigit())
        })
    }
);

impl InstanceId {
    /// Whether it is of a machine outside EC2, which EC2 and Auto Scaling know nothing of.
    pub fn is_on_premises(&self) -> bool {
        self.0.starts_with("mi-")
    }
}

checked!(
    /// The name of an application, a deployment group or a pipeline, or a deployment's id: 1 to 100 of the
    /// characters that CodeDeploy and CodePipeline allow. No blank, quote, bracket or slash is among them, so that
    /// no stranger's sentence or link stands in a message as a name.
    Name,
    |text| (1..=100).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"+=,.@_-".contains(&c))
);

/// What [`Name`] accepts, for errors.
pub const NAME_FORM: &str = "1 to 100 of letters, digits and + = , . @ _ -";

/// A deployment group, wherever it lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName {
    /// The account.
    pub account: AccountId,
    /// The region.
    pub region: Region,
    /// The CodeDeploy application.
    pub application: Name,
    /// The deployment group.
    pub deployment_group: Name,
}

/// As people say it: `application/deployment-group`.
impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.application, self.deployment_group)
    }
}

/// The parts of an Amazon Resource Name, `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arn<'a> {
    /// The service's namespace, such as `sns`.
    pub service: &'a str,
    /// Empty where the service has no regions.
    pub region: &'a str,
    /// Empty where the service has no accounts.
    pub account: &'a str,
    /// All the rest, colons included.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Reads an ARN of any of AWS's partitions; `None` when the text is none.
    pub fn read(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, service, region, account, resource] = parts[..] else {
            return None;
        };
        partition.starts_with("aws").then_some(Self {
            service,
            region,
            account,
            resource,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_nothing_but_a_name() {
        assert!(Region::read("us-gov-east-1").is_some());
        for text in ["example.com/", "", "EU-WEST-1", "1-eu"] {
            assert_eq!(Region::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_machine_outside_ec2_has_an_id_of_its_own() {
        let on_premises = |text| InstanceId::read(text).map(|id| id.is_on_premises());
        assert_eq!(on_premises("i-01234567"), Some(false));
        assert_eq!(on_premises("mi-0123456789abcdef0"), Some(true));
        for text in [
            "mi-01234567",
            "mi-0123456789abcdefg",
            "i-0123456",
            "0123456789abcdef0",
        ] {
            assert_eq!(on_premises(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_holds_no_markup() {
        for text in ["a", "My_App-1+2=3,4.5@6", &"a".repeat(100)] {
            assert!(Name::read(text).is_some(), "{text}");
        }
        for text in [
            "",
            &"a".repeat(101),
            "a b",
            "a/b",
            "<https://evil.example|Open the runbook>",
            "a\u{202e}b",
            "ä",
        ] {
            assert_eq!(Name::read(text), None, "{text}");
        }
    }

    #[test]
    fn an_arn_has_six_parts_and_the_last_may_hold_colons() {
        let arn = Arn::read("arn:aws-cn:lambda:cn-north-1:123456789012:function:restarter:live");
        assert_eq!(arn.map(|arn| arn.resource), Some("function:restarter:live"));
        assert_eq!(Arn::read("arn:aws:sns:eu-west-1:123456789012"), None);
        assert_eq!(Arn::read("urn:aws:sns:eu-west-1:123456789012:x"), None);
    }
}
