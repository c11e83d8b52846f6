//! Text that others wrote (hosts, AWS, event senders), made fit for messages, logs and errors.

/// At most `most` characters of printable ASCII; anything else becomes `?`, line breaks become spaces. A
/// host chooses its own name and output, so neither may add lines, markup or invisible characters.
pub fn plain(text: &str, most: usize) -> String {
    let plain = text.trim().chars().map(|c| match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    });
    clip(plain, most)
}

/// A wrong value as an error shows it: recognisable, and short.
pub fn quoted(text: &str) -> String {
    format!("{:?}", plain(text, 80))
}

fn clip(text: impl Iterator<Item = char>, most: usize) -> String {
    let mut clipped: String = text.take(most.saturating_add(1)).collect();
    if clipped.len() > most {
        clipped.truncate(most.saturating_sub(3));
        clipped.push_str("...");
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line_and_shows_what_it_is() {
        assert_eq!(
            plain("web-1\nRepeat by hand:\u{202e}\u{2028}x", 99),
            "web-1 Repeat by hand:? x"
        );
        assert_eq!(plain("0123456789", 10), "0123456789");
        assert_eq!(plain("0123456789a", 10), "0123456...");
        assert_eq!(quoted("a\"b"), "\"a\\\"b\"");
    }
}
