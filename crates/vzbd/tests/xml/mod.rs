//! As much of XML as a results file has, read strictly: what this takes, every parser takes.

/// An element with what is in it.
#[derive(Debug, Default)]
pub(crate) struct Element {
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    /// All of its own text, without that of its children.
    pub(crate) text: String,
}

impl Element {
    /// The value of an attribute that must be there.
    #[track_caller]
    pub(crate) fn attribute(&self, name: &str) -> String {
        let found = self.attributes.iter().find(|(found, _)| found == name);
        found.unwrap_or_else(|| panic!("{} has no {name}", self.name)).1.clone()
    }
}

/// The document's element.
pub(crate) fn parse(text: &str) -> Element {
    let mut rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("a declaration");
    assert!(
        !text
            .chars()
            .any(|c| (c < ' ' && c != '\n' && c != '\t' && c != '\r') || c == '\u{fffe}' || c == '\u{ffff}'),
        "a character that XML can't hold"
    );
    let root = element(&mut rest);
    assert_eq!(rest.trim(), "", "something behind the document");
    root
}

fn element(rest: &mut &str) -> Element {
    let mut found = Element { name: take(rest, "<", name), ..Element::default() };
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("/>") {
            *rest = after;
            return found;
        }
        if let Some(after) = rest.strip_prefix('>') {
            *rest = after;
            break;
        }
        let attribute = take(rest, "", name);
        let value = take(rest, "=\"", |rest| {
            let end = rest.find('"').expect("the end of a value");
            assert!(!rest[..end].contains('<'), "a < in a value");
            end
        });
        *rest = rest.strip_prefix('"').unwrap();
        assert!(found.attributes.iter().all(|(name, _)| *name != attribute), "{attribute} twice");
        found.attributes.push((attribute, unescaped(&value)));
    }
    loop {
        let text = take(rest, "", |rest| rest.find('<').expect("an end"));
        assert!(!text.contains("]]>"));
        found.text += &unescaped(&text);
        if let Some(after) = rest.strip_prefix("</") {
            *rest = after.strip_prefix(&*found.name).expect("the end of the same element");
            *rest = rest.strip_prefix('>').expect("the end of an end");
            return found;
        }
        found.children.push(element(rest));
    }
}

fn take(rest: &mut &str, before: &str, len: impl Fn(&str) -> usize) -> String {
    *rest = rest.strip_prefix(before).unwrap_or_else(|| panic!("{before} expected at {rest:.60}"));
    let (taken, after) = rest.split_at(len(rest));
    *rest = after;
    taken.to_owned()
}

fn name(rest: &str) -> usize {
    let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').expect("something behind a name");
    assert!(len > 0, "a name expected at {rest:.60}");
    len
}

fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out += before;
        let (entity, after) = after.split_once(';').expect("the end of an entity");
        out.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            number => {
                let number = number.strip_prefix('#').expect("a known entity");
                char::from_u32(number.parse().unwrap()).expect("a character")
            }
        });
        rest = after;
    }
    out + rest
}
