//! Calls between `<tool_call>` and `</tool_call>`: JSON (Hermes, Qwen3, Ling, Granite), tags (Qwen3-Coder), or both kinds of
//! a name with tags (GLM).

use super::{
    grammar::{Grammar, Literal, Verdict, literal},
    json::blank,
    object::CallObject,
    sink::Sink,
    xml::{GLM, QWEN, Xml},
};

#[derive(Debug)]
enum Body {
    /// The first character tells.
    Unknown,
    Object(CallObject),
    /// Behind the object.
    Closing,
    Xml(Xml),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tagged {
    body: Body,
    glm: bool,
    read: String,
}

impl Tagged {
    /// Behind `<tool_call>`; `glm`: a bare name may follow.
    pub fn new(glm: bool) -> Self {
        Tagged { body: Body::Unknown, glm, read: String::new() }
    }

    /// Behind `<function=`, which Qwen3-Coder writes without `<tool_call>` at times.
    pub fn function() -> Self {
        Tagged { body: Body::Xml(Xml::opened(&QWEN)), glm: false, read: String::new() }
    }
}

impl Grammar for Tagged {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.body {
            Body::Unknown if blank(c) => Verdict::More,
            Body::Unknown if c == '{' => {
                let mut object = CallObject::new(false);
                let verdict = object.push(c, sink);
                self.body = Body::Object(object);
                verdict
            }
            Body::Unknown if c != '<' && !self.glm => Verdict::No,
            Body::Unknown => {
                let mut xml = Xml::new(if c == '<' { &QWEN } else { &GLM });
                let verdict = xml.push(c, sink);
                self.body = Body::Xml(xml);
                verdict
            }
            Body::Object(object) => match object.push(c, sink) {
                Verdict::Done => {
                    self.body = Body::Closing;
                    Verdict::More
                }
                other => other,
            },
            Body::Closing if self.read.is_empty() && blank(c) => Verdict::More,
            Body::Closing => match literal(&mut self.read, c, &["</tool_call>"]) {
                Literal::More => Verdict::More,
                Literal::Found(_) => Verdict::Done,
                Literal::No => Verdict::No,
            },
            Body::Xml(xml) => xml.push(c, sink),
        }
    }
}
