//! Whose an event or an action is: this function's, another installation's, or nobody's. Nothing is asked in another
//! account.

use std::collections::BTreeSet;

use crate::ids::AccountId;
use crate::problem::{Code, Problem, Step};
use crate::trigger::Home;

/// The accounts that are somebody's.
#[derive(Clone, Copy, Debug)]
pub struct Accounts<'a> {
    /// Where this function lives.
    pub home: &'a Home,
    /// Those that have an installation of their own.
    pub covered: &'a BTreeSet<AccountId>,
}

/// Why nothing is done here about an event or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// The installation in its account does it: for the log alone.
    Covered(String),
    /// Nobody does it: to be told.
    Problem(Problem),
}

impl From<Problem> for NotOurs {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl Accounts<'_> {
    /// Whether what is of this account is this function's.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, what: &str, account: &AccountId) -> Result<(), NotOurs> {
        let ours = &self.home.account;
        if account == ours {
            return Ok(());
        }
        Err(match self.covered.contains(account) {
            true => NotOurs::Covered(format!(
                "{what} belongs to account {account}, which has an installation of its own (COVERED_ACCOUNTS)"
            )),
            false => NotOurs::Problem(Problem::new(
                Step::Deployments,
                Code::OtherAccount(account.clone()),
                format!(
                    "{what} belongs to account {account}, this function to {ours}; no call was made"
                ),
            )),
        })
    }
}
