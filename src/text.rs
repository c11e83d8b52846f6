//! Words: enums that have one for each variant, and text that others wrote, made fit for ours.

/// An enum in which each variant has a word for JSON, messages and logs. A new variant cannot lack one.
macro_rules! worded {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in JSON, messages and logs.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}
pub(crate) use worded;

/// At most `most` characters of printable ASCII; anything else becomes `?`, line breaks become spaces.
pub fn plain(text: &str, most: usize) -> String {
    clip(text.trim().chars().map(printable), most)
}

/// A wrong value as an error shows it: recognisable, and short.
pub fn quoted(text: &str) -> String {
    format!("{:?}", plain(text, 80))
}

/// What a host says of itself, as [`plain`] and also no link, mention or markup in any mail, chat or text
/// message: `://` becomes `[:]//`, a dot inside a domain name `[.]`, an at sign `[at]`; angle and square brackets
/// become round ones, back-ticks and quotes apostrophes. Paths and names in private zones stay as they are.
pub fn harmless(text: &str, most: usize) -> String {
    let text: String = text.trim().chars().map(printable).collect();
    let words: Vec<String> = text.split(' ').map(harmless_word).collect();
    clip(words.join(" ").chars(), most)
}

/// A detail in at most `most` characters, and a quotation that was cut ends all the same.
pub fn cut(detail: &str, most: usize) -> String {
    let is_open = |text: &str| text.matches('"').count() % 2 == 1;
    match plain(detail, most) {
        cut if is_open(&cut) => plain(detail, most.saturating_sub(1)) + "\"",
        cut => cut,
    }
}

/// A host's own words, marked as such.
pub fn host_says(text: &str, most: usize) -> String {
    format!("host says: \"{}\"", harmless(text, most))
}

/// At most `most` characters of ASCII text: its begin and its end.
pub fn abridged(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(2);
    let (begin, end) = (kept.div_ceil(2), text.len() - kept / 2);
    format!("{}..{}", &text[..begin], &text[end..])
}

fn printable(c: char) -> char {
    match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    }
}

fn harmless_word(word: &str) -> String {
    // A host's file: its first folder is no domain, and nothing in it looks like one to a mail program.
    let is_path = word
        .strip_prefix('/')
        .and_then(|path| path.split('/').next())
        .is_some_and(|folder| !folder.is_empty() && !folder.contains('.'))
        && !word.to_ascii_lowercase().contains("www.");
    // Zones that are nobody's on the Internet; EC2 names its hosts in the first.
    let is_private = [".internal", ".local"]
        .iter()
        .any(|zone| word.ends_with(zone));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let keeps_dots = is_path || is_private && word.chars().all(is_name);
    let mut harmless = String::new();
    let mut before = ' ';
    let mut rest = word.chars().peekable();
    while let Some(c) = rest.next() {
        let next = rest.peek().copied().unwrap_or(' ');
        match c {
            '<' | '[' => harmless.push('('),
            '>' | ']' => harmless.push(')'),
            '`' | '"' => harmless.push('\''),
            '@' => harmless.push_str("[at]"),
            ':' if next == '/' => harmless.push_str("[:]"),
            '.' if !keeps_dots && before.is_ascii_alphanumeric() && next.is_ascii_alphabetic() => {
                harmless.push_str("[.]");
            }
            c => harmless.push(c),
        }
        before = c;
    }
    harmless
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

    #[test]
    fn a_name_is_shortened_in_its_middle() {
        assert_eq!(abridged("my-application", 14), "my-application");
        assert_eq!(abridged("my-application", 13), "my-app..ation");
        assert_eq!(abridged("my-application", 2), "..");
    }

    #[test]
    fn what_a_host_says_is_neither_link_nor_markup() {
        for (said, shown) in [
            (
                "see https://evil.example/a.b",
                "see https[:]//evil[.]example/a[.]b",
            ),
            ("<!channel> `x` \"y\"", "(!channel) 'x' 'y'"),
            ("www.evil.example", "www[.]evil[.]example"),
            ("[click](http://e.x)", "(click)(http[:]//e[.]x)"),
            ("a@b.example \u{202e}txt", "a[at]b[.]example ?txt"),
            ("ip-10-0-0-1.ec2.internal", "ip-10-0-0-1.ec2.internal"),
            ("//a.internal", "//a[.]internal"),
            ("evil.com?x.internal", "evil[.]com?x[.]internal"),
            ("www.evil.example,x.local", "www[.]evil[.]example,x[.]local"),
            ("/www.evil.example/a", "/www[.]evil[.]example/a"),
            ("/a/WWW.evil.example", "/a/WWW[.]evil[.]example"),
            ("mailto:a", "mailto:a"),
            (
                "/var/log/codedeploy-agent.log",
                "/var/log/codedeploy-agent.log",
            ),
            ("OFFICIAL_1.8.1-1_rpm 3.5 s.", "OFFICIAL_1.8.1-1_rpm 3.5 s."),
        ] {
            assert_eq!(harmless(said, 99), shown);
        }
        assert_eq!(host_says("no", 9), "host says: \"no\"");
        assert_eq!(cut("host says: \"no more\"", 18), "host says: \"no...\"");
    }
}
