//! Answers that come in pages.

use std::future::Future;

use crate::problem::{CallError, Code};

/// Pages that are read of one answer. The largest answer that AWS can give here (1,000 instances of a
/// deployment in pages of 10) has 100; more means that the paging does not end.
const MAX_PAGES: usize = 500;

/// Reads every page of a paged call. See [`first_pages`].
///
/// # Errors
/// The first page's error, or one of our own when the paging does not end.
pub async fn pages<T, F>(
    operation: &'static str,
    fetch: impl FnMut(Option<String>) -> F,
) -> Result<Vec<T>, CallError>
where
    F: Future<Output = Result<(Vec<T>, Option<String>), CallError>>,
{
    first_pages(operation, usize::MAX, fetch).await
}

/// Reads pages of a paged call until there are `enough` items or no more pages. `fetch` gets the token of the page (none for the first) and gives its
/// items with the token of the next.
///
/// # Errors
/// The first page's error, or one of our own when the paging does not end.
pub async fn first_pages<T, F>(
    operation: &'static str,
    enough: usize,
    mut fetch: impl FnMut(Option<String>) -> F,
) -> Result<Vec<T>, CallError>
where
    F: Future<Output = Result<(Vec<T>, Option<String>), CallError>>,
{
    let mut items = Vec::new();
    let mut token = None;
    for _ in 0..MAX_PAGES {
        let (page, next) = fetch(token).await?;
        items.extend(page);
        token = next.filter(|token| !token.is_empty());
        if token.is_none() || items.len() >= enough {
            return Ok(items);
        }
    }
    Err(CallError {
        operation,
        resource: format!("page {MAX_PAGES}"),
        code: Code::TooManyPages,
        message: format!("AWS still gives a next page after {MAX_PAGES}"),
    })
}
