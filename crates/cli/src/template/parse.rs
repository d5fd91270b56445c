//! From tokens to nodes.

use serde_json::{Number, Value};

use super::builtin;
use super::lex::{Kind, Token, Trouble, lex};

/// Parentheses and blocks may be nested this deep.
const DEPTH: usize = 200;

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range(Pipe, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

/// Commands whose results are passed on, and the variables that take the last one.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) variables: Vec<String>,
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
}

#[derive(Debug)]
pub(super) struct Command {
    pub(super) operands: Vec<Operand>,
    pub(super) span: Span,
}

/// Bytes of the source, and the byte that an error about them names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) at: usize,
}

#[derive(Debug)]
pub(super) struct Operand {
    pub(super) value: Base,
    /// `.A.B` behind it.
    pub(super) fields: Vec<String>,
    pub(super) span: Span,
}

#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Nil,
    Literal(Value),
    Variable(String),
    Function(&'static builtin::Function),
    Pipe(Box<Pipe>),
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
    variables: Vec<String>,
    ranges: usize,
    depth: usize,
}

/// How a list of nodes ended.
#[derive(Debug, PartialEq)]
enum Stop {
    End,
    Else,
    Eof,
}

pub(super) fn parse(source: &str) -> Result<Vec<Node>, String> {
    let run = || {
        let mut parser = Parser {
            source,
            tokens: lex(source)?,
            next: 0,
            variables: vec!["$".to_owned()],
            ranges: 0,
            depth: 0,
        };
        let (nodes, stop) = parser.list()?;
        match stop {
            Stop::Eof => Ok(nodes),
            Stop::End => Err(parser.trouble("unexpected {{end}}")),
            Stop::Else => Err(parser.trouble("unexpected {{else}}")),
        }
    };
    run().map_err(|(at, text): Trouble| {
        let before = source.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        format!("template: :{line}: {text}")
    })
}

type Parsed<T> = Result<T, Trouble>;

impl Parser<'_> {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.next).map(|token| &token.kind)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.next).cloned();
        self.next += 1;
        token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Kind::Sign(s)) if *s == sign)
    }

    fn trouble(&self, text: impl Into<String>) -> Trouble {
        let last = self.next.min(self.tokens.len()).saturating_sub(1);
        let at = self.tokens.get(last).map_or(0, |token| token.start);
        (at, text.into())
    }

    fn unexpected(&mut self, context: &str) -> Trouble {
        let what = match self.peek() {
            None => "EOF".to_owned(),
            Some(Kind::Bad(c)) if !c.is_ascii() || c.is_ascii_control() => {
                let (c, code) = (*c, u32::from(*c));
                self.next += 1;
                return self.trouble(format!(
                    "unrecognized character in action: U+{code:04X} '{c}'"
                ));
            }
            Some(_) => {
                let token = self.tokens.get(self.next);
                let text = token.and_then(|t| self.source.get(t.start..t.end));
                format!("{:?}", text.unwrap_or_default())
                    .replace("\"<", "<")
                    .replace(">\"", ">")
            }
        };
        self.next += 1;
        self.trouble(format!("unexpected {what} in {context}"))
    }

    fn list(&mut self) -> Parsed<(Vec<Node>, Stop)> {
        self.deeper()?;
        let mut nodes = Vec::new();
        let stop = loop {
            let Some(token) = self.take() else {
                break Stop::Eof;
            };
            match token.kind {
                Kind::Text(text) => nodes.push(Node::Text(text)),
                _ => match self.statement()? {
                    Ok(node) => nodes.push(node),
                    Err(stop) => break stop,
                },
            }
        };
        self.depth -= 1;
        Ok((nodes, stop))
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.trouble("nested too deeply"));
        }
        Ok(())
    }

    /// After `{{`: a node, or the end of the list it stands in.
    fn statement(&mut self) -> Parsed<Result<Node, Stop>> {
        let keyword = match self.peek() {
            Some(Kind::Word(word)) => word.clone(),
            _ => String::new(),
        };
        if matches!(
            keyword.as_str(),
            "if" | "with" | "range" | "else" | "end" | "break" | "continue"
        ) {
            self.next += 1;
        }
        Ok(match keyword.as_str() {
            "if" | "with" | "range" => Ok(self.block(&keyword)?),
            "end" => {
                self.close("end")?;
                Err(Stop::End)
            }
            // The caller looks for `else if`.
            "else" => Err(Stop::Else),
            "break" | "continue" => {
                if self.ranges == 0 {
                    return Err(self.trouble(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                }
                self.close(&keyword)?;
                Ok(if keyword == "break" {
                    Node::Break
                } else {
                    Node::Continue
                })
            }
            _ => Ok(Node::Action(self.pipe("command", 2)?)),
        })
    }

    fn close(&mut self, context: &str) -> Parsed<()> {
        if self.peek() == Some(&Kind::Close) {
            self.next += 1;
            return Ok(());
        }
        Err(self.unexpected(context))
    }

    fn block(&mut self, keyword: &str) -> Parsed<Node> {
        self.deeper()?;
        let scope = self.variables.len();
        let pipe = self.pipe(keyword, if keyword == "range" { 2 } else { 1 })?;
        self.ranges += usize::from(keyword == "range");
        let (body, stop) = self.list()?;
        self.ranges -= usize::from(keyword == "range");
        let mut otherwise = Vec::new();
        match stop {
            Stop::End => {}
            Stop::Eof => return Err(self.trouble("unexpected EOF")),
            Stop::Else => {
                let next = match self.peek() {
                    Some(Kind::Word(word)) if word == "if" || word == "with" => word.clone(),
                    _ => String::new(),
                };
                if next == keyword {
                    // `else if` closes with the one `end`.
                    self.next += 1;
                    otherwise.push(self.block(keyword)?);
                } else {
                    self.close("else")?;
                    let (nodes, stop) = self.list()?;
                    match stop {
                        Stop::End => otherwise = nodes,
                        Stop::Else => return Err(self.trouble("expected end; found {{else}}")),
                        Stop::Eof => return Err(self.trouble("unexpected EOF")),
                    }
                }
            }
        }
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(match keyword {
            "if" => Node::If(pipe, body, otherwise),
            "with" => Node::With(pipe, body, otherwise),
            _ => Node::Range(pipe, body, otherwise),
        })
    }

    /// A pipeline up to `}}`, or up to `)` where it is in parentheses.
    fn pipe(&mut self, context: &str, most: usize) -> Parsed<Pipe> {
        self.deeper()?;
        let (variables, declares) = self.declaration(context, most)?;
        let mut commands = Vec::new();
        loop {
            let command = self.command(context)?;
            // Go lets a pipeline end in `|`.
            if command.operands.is_empty() && commands.is_empty() {
                let context = if context == "parenthesized pipeline" {
                    "command"
                } else {
                    context
                };
                return Err(self.trouble(format!("missing value for {context}")));
            }
            if let Some(first) = command.operands.first()
                && !commands.is_empty()
                && matches!(first.value, Base::Literal(_) | Base::Nil | Base::Dot)
                && first.fields.is_empty()
            {
                let stage = commands.len() + 1;
                return Err(
                    self.trouble(format!("non executable command in pipeline stage {stage}"))
                );
            }
            if !command.operands.is_empty() {
                commands.push(command);
            }
            if self.is_sign("|") {
                self.next += 1;
                continue;
            }
            if context == "parenthesized pipeline" {
                if !self.is_sign(")") {
                    return Err(self.trouble("unclosed left paren"));
                }
                self.next += 1;
            } else {
                self.close(context)?;
            }
            break;
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        self.depth -= 1;
        Ok(Pipe {
            variables,
            declares,
            commands,
        })
    }

    fn declaration(&mut self, context: &str, most: usize) -> Parsed<(Vec<String>, bool)> {
        let mut variables = Vec::new();
        let start = self.next;
        while let Some(Kind::Variable(name)) = self.peek() {
            variables.push(name.clone());
            self.next += 1;
            if self.is_sign(":=") || self.is_sign("=") {
                let declares = self.is_sign(":=");
                self.next += 1;
                if variables.len() > most || (variables.len() > 1 && context != "range") {
                    return Err(self.trouble(format!("too many declarations in {context}")));
                }
                if !declares {
                    for name in &variables {
                        self.known(name)?;
                    }
                }
                return Ok((variables, declares));
            }
            if !(context == "range" && self.is_sign(",")) {
                break;
            }
            self.next += 1;
        }
        self.next = start;
        Ok((Vec::new(), false))
    }

    fn known(&self, name: &str) -> Parsed<()> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(self.trouble(format!("undefined variable {name:?}")))
    }

    fn command(&mut self, context: &str) -> Parsed<Command> {
        let mut operands: Vec<Operand> = Vec::new();
        while let Some(kind) = self.peek() {
            if matches!(kind, Kind::Close | Kind::Sign("|" | ")")) {
                if matches!(kind, Kind::Sign(")")) && context != "parenthesized pipeline" {
                    return Err(self.trouble("unexpected right paren"));
                }
                break;
            }
            let spaced = self.tokens.get(self.next).is_some_and(|token| token.spaced);
            if !operands.is_empty() && !spaced {
                return Err(self.unexpected("operand"));
            }
            let operand = self.operand()?;
            operands.push(operand);
        }
        let start = operands.first().map_or(0, |operand| operand.span.start);
        let end = operands.last().map_or(0, |operand| operand.span.end);
        let at = match operands.first() {
            Some(Operand {
                value: Base::Function(_),
                ..
            })
            | None => start,
            Some(first) => first.span.at,
        };
        Ok(Command {
            operands,
            span: Span { start, end, at },
        })
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let Some(token) = self.tokens.get(self.next).cloned() else {
            return Err(self.trouble("unexpected EOF"));
        };
        let mut fields = Vec::new();
        let value = match token.kind {
            Kind::Dot => Base::Dot,
            Kind::Field(name) => {
                fields.push(name);
                Base::Dot
            }
            Kind::String(text) => Base::Literal(Value::String(text)),
            Kind::Number(text) => Base::Literal(number(&text)),
            Kind::Variable(name) => {
                self.next += 1;
                self.known(&name)?;
                self.next -= 1;
                Base::Variable(name)
            }
            Kind::Word(word) => match word.as_str() {
                "true" => Base::Literal(Value::Bool(true)),
                "false" => Base::Literal(Value::Bool(false)),
                "nil" => Base::Nil,
                name => match builtin::find(name) {
                    Some(function) => Base::Function(function),
                    None => {
                        self.next += 1;
                        return Err(self.trouble(format!("function {name:?} not defined")));
                    }
                },
            },
            Kind::Sign("(") => {
                self.next += 1;
                let pipe = self.pipe("parenthesized pipeline", 1)?;
                self.next -= 1;
                Base::Pipe(Box::new(pipe))
            }
            _ => {
                let bad = matches!(token.kind, Kind::Bad('}'));
                let context = if bad { "operand" } else { "command" };
                return Err(self.unexpected(context));
            }
        };
        self.next += 1;
        let mut span = Span {
            start: token.start,
            end: self.tokens.get(self.next - 1).map_or(token.end, |t| t.end),
            at: token.start,
        };
        while let Some(Token {
            kind: Kind::Field(name),
            start,
            end,
            spaced: false,
        }) = self.tokens.get(self.next)
        {
            fields.push(name.clone());
            span.end = *end;
            span.at = *start;
            self.next += 1;
        }
        Ok(Operand {
            value,
            fields,
            span,
        })
    }
}

fn number(text: &str) -> Value {
    if let Ok(integer) = text.parse::<i64>() {
        return Value::from(integer);
    }
    let float = text.parse::<f64>().ok().and_then(Number::from_f64);
    float.map_or(Value::Null, Value::Number)
}
