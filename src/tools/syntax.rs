//! How models write their calls, and which model writes them how.

use super::{
    grammar::Grammar,
    pythonic::{Llama, Marked},
    section::{DEEPSEEK, KIMI, Mistral, Section},
    sink::IdForm,
    tagged::Tagged,
    xml::{MINIMAX, Xml},
};
use crate::tokenizer::{Kept, Tokenizer};

/// How a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>`: Hermes, Qwen 2.5 and 3, Ling, Granite, SmolLM.
    Hermes,
    /// `<tool_call><function=f><parameter=x>1</parameter></function></tool_call>`: Qwen3-Coder, Qwen 3.5.
    QwenXml,
    /// `<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>`: GLM 4.5 and later.
    Glm,
    /// `[TOOL_CALLS]` and a list, `[{"name": "f", "arguments": {"x": 1}}]`: Mistral up to the tokenizer's version 7.
    MistralList,
    /// `[TOOL_CALLS]f[ARGS]{"x": 1}`: Mistral from version 11 on.
    MistralNamed,
    /// The whole answer is `{"name": "f", "parameters": {"x": 1}}` or `[f(x=1)]`: Llama 3 and 4.
    Llama,
    /// `<|tool_call_start|>[f(x=1)]<|tool_call_end|>`: LFM2.
    Lfm2,
    /// A message to `functions.f` (Harmony): gpt-oss.
    Harmony,
    /// Between `<｜tool▁calls▁begin｜>` and its end, a name and fenced JSON: DeepSeek V3 and R1.
    DeepSeekV3,
    /// The same with the name before and bare JSON behind the separator: DeepSeek V3.1.
    DeepSeekV31,
    /// `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>` in a section: Kimi K2.
    Kimi,
    /// `<minimax:tool_call><invoke name="f"><parameter name="x">1</parameter></invoke></minimax:tool_call>`: MiniMax M2.
    MiniMax,
}

const PYTHON_TAG: &str = "<|python_tag|>";
const PYTHON_START: &str = "<|python_start|>";
const PYTHON_END: &str = "<|python_end|>";
/// Llama 4 puts what it says before a call between the last two.
const LLAMA: &[&str] = &[PYTHON_TAG, PYTHON_START, PYTHON_END];
const DEEPSEEK_OPEN: &str = "<｜tool▁calls▁begin｜>";
const KIMI_OPEN: &str = "<|tool_calls_section_begin|>";

impl ToolSyntax {
    /// All of them.
    pub const ALL: &[ToolSyntax] = &[
        ToolSyntax::Hermes,
        ToolSyntax::QwenXml,
        ToolSyntax::Glm,
        ToolSyntax::MistralList,
        ToolSyntax::MistralNamed,
        ToolSyntax::Llama,
        ToolSyntax::Lfm2,
        ToolSyntax::Harmony,
        ToolSyntax::DeepSeekV3,
        ToolSyntax::DeepSeekV31,
        ToolSyntax::Kimi,
        ToolSyntax::MiniMax,
    ];

    /// The syntax of a model, by the marks that its chat template writes and its vocabulary has; `None` where the template
    /// knows no calls.
    pub fn of(tokenizer: &Tokenizer) -> Option<ToolSyntax> {
        let source = tokenizer.chat_template_source()?;
        // A template that shows the model neither tools nor calls teaches it none, whatever tokens there are.
        if !source.contains("tools") && !source.contains("tool_call") {
            return None;
        }
        let writes = |text: &str| source.contains(text);
        let knows = |text: &str| writes(text) || tokenizer.token_id(text).is_some();
        let has = |text: &str| tokenizer.token_id(text).is_some_and(|id| tokenizer.is_special(id));
        Some(if has("<|channel|>") && has("<|message|>") {
            ToolSyntax::Harmony
        } else if writes("<arg_key>") {
            ToolSyntax::Glm
        } else if writes("<minimax:tool_call>") {
            ToolSyntax::MiniMax
        } else if writes("<function=") && writes("<parameter=") {
            ToolSyntax::QwenXml
        } else if writes("<tool_call>") {
            ToolSyntax::Hermes
        } else if writes(DEEPSEEK_OPEN) {
            if writes("```json") { ToolSyntax::DeepSeekV3 } else { ToolSyntax::DeepSeekV31 }
        } else if writes(KIMI_OPEN) {
            ToolSyntax::Kimi
        } else if knows("[TOOL_CALLS]") {
            if writes("[ARGS]") { ToolSyntax::MistralNamed } else { ToolSyntax::MistralList }
        } else if knows("<|tool_call_start|>") {
            ToolSyntax::Lfm2
        } else if knows(PYTHON_TAG) || knows(PYTHON_START) || writes("\"parameters\": ") {
            ToolSyntax::Llama
        } else if knows("<tool_call>") {
            ToolSyntax::Hermes
        } else {
            return None;
        })
    }

    /// What begins calls anywhere in an answer.
    pub(super) fn opening(self) -> &'static [&'static str] {
        match self {
            ToolSyntax::Hermes | ToolSyntax::Glm => &["<tool_call>"],
            ToolSyntax::QwenXml => &["<tool_call>", "<function="],
            ToolSyntax::MistralList | ToolSyntax::MistralNamed => &["[TOOL_CALLS]"],
            ToolSyntax::Llama => LLAMA,
            ToolSyntax::Lfm2 => &["<|tool_call_start|>"],
            ToolSyntax::Harmony => &[],
            ToolSyntax::DeepSeekV3 | ToolSyntax::DeepSeekV31 => &[DEEPSEEK_OPEN, DEEPSEEK.begin],
            ToolSyntax::Kimi => &[KIMI_OPEN, KIMI.begin],
            ToolSyntax::MiniMax => &["<minimax:tool_call>"],
        }
    }

    /// What ends calls: the last is what the others end with.
    pub(super) fn closing(self) -> &'static [&'static str] {
        match self {
            ToolSyntax::Hermes | ToolSyntax::Glm | ToolSyntax::QwenXml => &["</tool_call>"],
            ToolSyntax::MistralList | ToolSyntax::MistralNamed | ToolSyntax::Harmony | ToolSyntax::Llama => &[],
            ToolSyntax::Lfm2 => &["<|tool_call_end|>"],
            ToolSyntax::DeepSeekV3 | ToolSyntax::DeepSeekV31 => &[DEEPSEEK.end, DEEPSEEK.section_end],
            ToolSyntax::Kimi => &[KIMI.end, KIMI.section_end],
            ToolSyntax::MiniMax => &["</minimax:tool_call>"],
        }
    }

    /// Of [`ToolSyntax::opening`] what is no text even where no call follows.
    pub(super) fn silent(self) -> &'static [&'static str] {
        if self == ToolSyntax::Llama { LLAMA } else { &[] }
    }

    /// Whether an answer that begins with this character may be a call as a whole.
    pub(super) fn bare(self, c: char) -> bool {
        self == ToolSyntax::Llama && matches!(c, '{' | '[')
    }

    /// What reads on behind `mark`, which is one of [`ToolSyntax::opening`], or empty for a bare call.
    pub(super) fn grammar(self, mark: &str) -> Box<dyn Grammar> {
        match self {
            ToolSyntax::Hermes => Box::new(Tagged::new(false)),
            ToolSyntax::QwenXml if mark == "<function=" => Box::new(Tagged::function()),
            ToolSyntax::QwenXml => Box::new(Tagged::new(false)),
            ToolSyntax::Glm => Box::new(Tagged::new(true)),
            ToolSyntax::MistralList | ToolSyntax::MistralNamed => Box::new(Mistral::Start),
            ToolSyntax::Llama | ToolSyntax::Harmony => Box::new(Llama::new(PYTHON_END)),
            ToolSyntax::Lfm2 => Box::new(Marked::new("<|tool_call_end|>")),
            ToolSyntax::DeepSeekV3 | ToolSyntax::DeepSeekV31 if mark == DEEPSEEK.begin => {
                Box::new(Section::call(&DEEPSEEK))
            }
            ToolSyntax::DeepSeekV3 | ToolSyntax::DeepSeekV31 => Box::new(Section::new(&DEEPSEEK)),
            ToolSyntax::Kimi if mark == KIMI.begin => Box::new(Section::call(&KIMI)),
            ToolSyntax::Kimi => Box::new(Section::new(&KIMI)),
            ToolSyntax::MiniMax => Box::new(Xml::new(&MINIMAX)),
        }
    }

    /// Control tokens that stay in an answer's content for the reader of calls.
    pub(super) fn kept(self) -> Kept {
        let inner: &[&'static str] = match self {
            ToolSyntax::DeepSeekV3 | ToolSyntax::DeepSeekV31 => &[DEEPSEEK.separator],
            ToolSyntax::Kimi => &[KIMI.separator],
            ToolSyntax::MistralList | ToolSyntax::MistralNamed => &["[ARGS]", "[CALL_ID]"],
            ToolSyntax::Glm => &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            ToolSyntax::Hermes
            | ToolSyntax::QwenXml
            | ToolSyntax::Llama
            | ToolSyntax::Lfm2
            | ToolSyntax::Harmony
            | ToolSyntax::MiniMax => &[],
        };
        Kept { opening: self.opening().to_vec(), other: self.closing().iter().chain(inner).copied().collect() }
    }

    pub(super) fn ids(self) -> IdForm {
        match self {
            ToolSyntax::MistralList | ToolSyntax::MistralNamed => IdForm::Nine,
            ToolSyntax::Hermes
            | ToolSyntax::QwenXml
            | ToolSyntax::Glm
            | ToolSyntax::Llama
            | ToolSyntax::Lfm2
            | ToolSyntax::Harmony
            | ToolSyntax::DeepSeekV3
            | ToolSyntax::DeepSeekV31
            | ToolSyntax::Kimi
            | ToolSyntax::MiniMax => IdForm::Call,
        }
    }
}
