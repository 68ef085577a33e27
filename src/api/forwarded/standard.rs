//! The header `Forwarded`, as RFC 7239, section 4, writes it: `for=1.1.1.1;proto=https, for="[::1]:80"`.

/// What one proxy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    /// `for`: who asked it.
    pub(super) client: Option<String>,
    pub(super) host: Option<String>,
    pub(super) proto: Option<String>,
}

impl Element {
    /// Takes a parameter; `None` where it is there already. Others than these are skipped.
    fn set(&mut self, name: &str, value: String) -> Option<()> {
        let slot = match name.to_ascii_lowercase().as_str() {
            "for" => &mut self.client,
            "host" => &mut self.host,
            "proto" => &mut self.proto,
            _ => return Some(()),
        };
        slot.replace(value).is_none().then_some(())
    }
}

/// The elements of one line, in their order; `None` where it is not of that form.
pub(super) fn elements(line: &str) -> Option<Vec<Element>> {
    let mut elements = Vec::new();
    let mut element = Element::default();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let name;
        (name, rest) = rest.split_at(length(rest, is_token));
        if !name.is_empty() {
            let value;
            (value, rest) = value_of(rest.strip_prefix('=')?)?;
            element.set(name, value)?;
            rest = rest.trim_start_matches([' ', '\t']);
        }
        let mut signs = rest.chars();
        match signs.next() {
            None => {
                elements.push(element);
                return Some(elements);
            }
            Some(';') => {}
            Some(',') => elements.push(std::mem::take(&mut element)),
            Some(_) => return None,
        }
        rest = signs.as_str();
    }
}

/// A value and what follows it. Ports and brackets, which belong in quotes, are often written without.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(length(text, |c| is_token(c) || ":[]".contains(c)));
        return (!value.is_empty()).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut signs = quoted.chars();
    loop {
        match signs.next()? {
            '"' => return Some((value, signs.as_str())),
            '\\' => value.push(signs.next()?),
            sign => value.push(sign),
        }
    }
}

fn length(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_part(c)).unwrap_or(text.len())
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(client: &str, host: &str, proto: &str) -> Element {
        let [client, host, proto] = [client, host, proto].map(|text| (!text.is_empty()).then(|| text.to_owned()));
        Element { client, host, proto }
    }

    #[test]
    fn what_the_standard_writes_is_read() {
        for (line, expected) in [
            ("for=\"_gazonk\"", vec![element("_gazonk", "", "")]),
            ("For=\"[2001:db8:cafe::17]:4711\"", vec![element("[2001:db8:cafe::17]:4711", "", "")]),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", vec![element("192.0.2.60", "", "http")]),
            (
                "for=192.0.2.43, for=198.51.100.17",
                vec![element("192.0.2.43", "", ""), element("198.51.100.17", "", "")],
            ),
            ("host=a.example:80 ; for=1.1.1.1 ,", vec![element("1.1.1.1", "a.example:80", ""), Element::default()]),
            ("host=\"a\\\"b,c;d\"", vec![element("", "a\"b,c;d", "")]),
            ("secret=x;HOST=a", vec![element("", "a", "")]),
            ("", vec![Element::default()]),
        ] {
            assert_eq!(elements(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not() {
        for line in
            ["for", "for=", "for=\"a", "for=\"a\\", "=a", "for =a", "for=a b", "for=a;for=b", "for=a/b", "\"for\"=a"]
        {
            assert_eq!(elements(line), None, "{line}");
        }
    }
}
