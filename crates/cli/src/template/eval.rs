//! From nodes and data to text.

use serde_json::Value;

use super::Data;
use super::builtin::{Function, truth};
use super::format::show;
use super::parse::{Base, Command, Node, Operand, Pipe, Span};

/// No format needs more; it bounds `range` over large numbers.
const LONGEST: usize = 64 << 20;

/// The functions that a table's titles are not changed by.
const CHANGES: [&str; 7] = [
    "json", "split", "join", "title", "lower", "upper", "truncate",
];

struct Run<'a> {
    source: &'a str,
    data: &'a Data<'a>,
    variables: Vec<(&'a str, Value)>,
    out: String,
}

/// How a list of nodes was left.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

type Evaluated<T> = Result<T, String>;

pub(super) fn render(source: &str, nodes: &[Node], data: &Data<'_>) -> Evaluated<String> {
    let mut run = Run {
        source,
        data,
        variables: vec![("$", data.root.clone())],
        out: String::new(),
    };
    run.list(nodes, data.root)?;
    Ok(run.out)
}

impl<'a> Run<'a> {
    fn trouble(&self, span: Span, text: &str) -> String {
        let before = self.source.get(..span.at).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let column = span.at - before.rfind('\n').map_or(0, |newline| newline + 1);
        let node = self.source.get(span.start..span.end).unwrap_or_default();
        let short: String = node.chars().take(20).collect();
        let node = if short.len() < node.len() {
            format!("{short}...")
        } else {
            short
        };
        format!("template: :{line}:{column}: executing \"\" at <{node}>: {text}")
    }

    fn list(&mut self, nodes: &'a [Node], dot: &Value) -> Evaluated<Flow> {
        let scope = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn node(&mut self, node: &'a Node, dot: &Value) -> Evaluated<Flow> {
        if self.out.len() > LONGEST {
            return Err("template: the output is longer than 64 MiB".to_owned());
        }
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Action(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if !pipe.variables.is_empty() {
                    return Ok(Flow::Next);
                }
                match field_of(pipe) {
                    Some(field) if value.is_null() && self.data.structs => {
                        self.out.push_str(nil(field));
                    }
                    _ => self.out.push_str(&show(&value)),
                }
            }
            Node::If(pipe, body, otherwise) => {
                let scope = self.variables.len();
                let chosen = if truth(&self.pipe(pipe, dot)?) {
                    body
                } else {
                    otherwise
                };
                let flow = self.list(chosen, dot)?;
                self.variables.truncate(scope);
                return Ok(flow);
            }
            Node::With(pipe, body, otherwise) => {
                let scope = self.variables.len();
                let value = self.pipe(pipe, dot)?;
                let flow = if truth(&value) {
                    self.list(body, &value)?
                } else {
                    self.list(otherwise, dot)?
                };
                self.variables.truncate(scope);
                return Ok(flow);
            }
            Node::Range(pipe, body, otherwise) => return self.range(pipe, body, otherwise, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn range(
        &mut self,
        pipe: &'a Pipe,
        body: &'a [Node],
        otherwise: &'a [Node],
        dot: &Value,
    ) -> Evaluated<Flow> {
        let value = self.commands(pipe, dot)?;
        let scope = self.variables.len();
        let mut items: Box<dyn Iterator<Item = (Value, Value)>> = match &value {
            Value::Null => Box::new(std::iter::empty()),
            Value::Array(list) => Box::new(
                list.iter()
                    .enumerate()
                    .map(|(at, v)| (Value::from(at), v.clone())),
            ),
            Value::Object(map) => {
                let mut entries: Vec<(&String, &Value)> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                let entries = entries.into_iter();
                Box::new(entries.map(|(key, v)| (Value::from(key.as_str()), v.clone())))
            }
            Value::Number(number) if number.is_i64() && pipe.variables.len() < 2 => Box::new(
                (0..number.as_i64().unwrap_or(0)).map(|n| (Value::from(n), Value::from(n))),
            ),
            other => {
                let span = pipe.commands.first().map(|command| command.span);
                let text = match other {
                    Value::Number(number) if number.is_i64() => {
                        format!("can't use {number} to iterate over more than one variable")
                    }
                    other => format!("range can't iterate over {}", show(other)),
                };
                return Err(span.map_or_else(String::new, |span| self.trouble(span, &text)));
            }
        };
        let mut any = false;
        for (key, item) in &mut items {
            any = true;
            match pipe.variables.as_slice() {
                [] => {}
                [only] => self.bind(only, item.clone(), pipe.declares),
                [index, element, ..] => {
                    self.bind(index, key, pipe.declares);
                    self.bind(element, item.clone(), pipe.declares);
                }
            }
            let flow = self.list(body, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
            if self.out.len() > LONGEST {
                return Err("template: the output is longer than 64 MiB".to_owned());
            }
        }
        if any {
            return Ok(Flow::Next);
        }
        self.list(otherwise, dot)
    }

    fn bind(&mut self, name: &'a str, value: Value, declares: bool) {
        if !declares
            && let Some(slot) = self
                .variables
                .iter_mut()
                .rev()
                .find(|(known, _)| *known == name)
        {
            slot.1 = value;
            return;
        }
        self.variables.push((name, value));
    }

    fn pipe(&mut self, pipe: &'a Pipe, dot: &Value) -> Evaluated<Value> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.variables {
            self.bind(name, value.clone(), pipe.declares);
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &'a Pipe, dot: &Value) -> Evaluated<Value> {
        let mut passed = None;
        for command in &pipe.commands {
            passed = Some(self.command(command, dot, passed)?);
        }
        Ok(passed.unwrap_or(Value::Null))
    }

    fn command(
        &mut self,
        command: &'a Command,
        dot: &Value,
        passed: Option<Value>,
    ) -> Evaluated<Value> {
        let Some((first, rest)) = command.operands.split_first() else {
            return Ok(Value::Null);
        };
        if let Base::Function(function) = first.value {
            let value = self.call(function, command.span, rest, dot, passed)?;
            return self.fields(first, value, dot, &[]);
        }
        let mut args = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            args.push(self.operand(operand, dot)?);
        }
        args.extend(passed);
        if args.is_empty() {
            if matches!(first.value, Base::Nil) {
                return Err(self.trouble(first.span, "nil is not a command"));
            }
            return self.operand(first, dot);
        }
        if first.fields.is_empty() {
            let node = self
                .source
                .get(first.span.start..first.span.end)
                .unwrap_or_default();
            let text = format!("can't give argument to non-function {node}");
            return Err(self.trouble(first.span, &text));
        }
        let base = self.base(first, dot)?;
        self.fields(first, base, dot, &args)
    }

    fn call(
        &mut self,
        function: &'static Function,
        span: Span,
        operands: &'a [Operand],
        dot: &Value,
        passed: Option<Value>,
    ) -> Evaluated<Value> {
        let count = operands.len() + usize::from(passed.is_some());
        function.accepts(count).map_err(|text| {
            let end = span.start + function.name.len();
            self.trouble(Span { end, ..span }, &text)
        })?;
        // These two stop at the first argument that decides.
        let decides = match function.name {
            "and" => Some(false),
            "or" => Some(true),
            _ => None,
        };
        let mut args = Vec::with_capacity(count);
        for operand in operands {
            let value = self.operand(operand, dot)?;
            if decides == Some(truth(&value)) {
                return Ok(value);
            }
            args.push(value);
        }
        args.extend(passed);
        if self.data.titles && CHANGES.contains(&function.name) {
            return Ok(args.into_iter().next().unwrap_or(Value::Null));
        }
        if self.data.structs
            && function.name == "index"
            && let [map, Value::String(key)] = args.as_slice()
            && is_text_map(map)
        {
            // A Go map of texts has the empty text for every key that it lacks.
            return Ok(map.get(key).cloned().unwrap_or_else(|| Value::from("")));
        }
        if self.data.kind.is_some()
            && function.name == "json"
            && let [row @ Value::Object(_)] = args.as_slice()
        {
            return Ok(Value::String(escaped(row)));
        }
        (function.call)(&args)
            .map_err(|text| self.trouble(span, &format!("error calling {}: {text}", function.name)))
    }

    fn operand(&mut self, operand: &'a Operand, dot: &Value) -> Evaluated<Value> {
        // The usual `.A.B`: what is passed through is not copied.
        if matches!(operand.value, Base::Dot) && !operand.fields.is_empty() {
            return self.walk(operand, dot, dot, &[]);
        }
        let base = self.base(operand, dot)?;
        self.fields(operand, base, dot, &[])
    }

    fn base(&mut self, operand: &'a Operand, dot: &Value) -> Evaluated<Value> {
        Ok(match &operand.value {
            Base::Dot => dot.clone(),
            Base::Nil => Value::Null,
            Base::Literal(value) => value.clone(),
            Base::Variable(name) => {
                let mut known = self.variables.iter().rev();
                known
                    .find(|(known, _)| known == name)
                    .map_or(Value::Null, |(_, value)| value.clone())
            }
            Base::Function(function) => self.call(function, operand.span, &[], dot, None)?,
            Base::Pipe(pipe) => self.pipe(pipe, dot)?,
        })
    }

    /// Follows `.A.B`; arguments go to the last.
    fn fields(
        &self,
        operand: &Operand,
        base: Value,
        dot: &Value,
        args: &[Value],
    ) -> Evaluated<Value> {
        if operand.fields.is_empty() {
            return Ok(base);
        }
        self.walk(operand, &base, dot, args)
    }

    fn walk(
        &self,
        operand: &Operand,
        base: &Value,
        dot: &Value,
        args: &[Value],
    ) -> Evaluated<Value> {
        // `.Field` and `$.Field` may be computed, where the dot is still the root.
        let at_root = match &operand.value {
            Base::Dot => std::ptr::eq(dot, self.data.root),
            Base::Variable(name) => name == "$",
            _ => false,
        };
        let computed;
        let mut value = base;
        for (depth, name) in operand.fields.iter().enumerate() {
            let last = depth + 1 == operand.fields.len();
            let args = if last { args } else { &[] };
            let root = depth == 0 && at_root;
            if root && let Some(made) = (self.data.method)(name, args) {
                computed = made;
                return self.rest(operand, &computed, args);
            }
            let before = depth
                .checked_sub(1)
                .and_then(|before| operand.fields.get(before));
            let in_map = before.is_some_and(|before| MAPS.contains(&before.as_str()));
            if self.data.structs && in_map && value.get(name).is_none() {
                return Ok(Value::Null);
            }
            value = self.field(operand.span, value, name, args, root)?;
        }
        Ok(value.clone())
    }

    /// The fields behind a computed one.
    fn rest(&self, operand: &Operand, computed: &Value, args: &[Value]) -> Evaluated<Value> {
        let mut value = computed;
        let behind = operand.fields.get(1..).unwrap_or_default();
        for (depth, name) in behind.iter().enumerate() {
            let args = if depth + 1 == behind.len() { args } else { &[] };
            value = self.field(operand.span, value, name, args, false)?;
        }
        Ok(value.clone())
    }

    fn field<'v>(
        &self,
        span: Span,
        value: &'v Value,
        name: &str,
        args: &[Value],
        root: bool,
    ) -> Evaluated<&'v Value> {
        let text = match (value, self.data.kind) {
            (Value::Object(map), kind) => {
                let exact = map.get(name);
                let found = exact.or_else(|| {
                    let mut entries = map.iter().filter(|_| self.data.structs);
                    entries
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value)
                });
                match (found, kind) {
                    (Some(value), _) if args.is_empty() => return Ok(value),
                    (Some(_), _) => {
                        format!("{name} is not a method but has arguments")
                    }
                    (None, Some(kind)) if root => {
                        format!("can't evaluate field {name} in type {kind}")
                    }
                    (None, _) => format!("map has no entry for key {name:?}"),
                }
            }
            (Value::Null, _) => format!("nil pointer evaluating interface {{}}.{name}"),
            (_, _) => format!("can't evaluate field {name} in type interface {{}}"),
        };
        Err(self.trouble(span, &text))
    }
}

/// JSON of a row, which Docker makes safe for HTML.
fn escaped(row: &Value) -> String {
    let text = row.to_string();
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

fn is_text_map(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(Value::is_string),
        _ => false,
    }
}

/// The last field of a pipeline that is nothing but a field.
fn field_of(pipe: &Pipe) -> Option<&str> {
    let [command] = pipe.commands.as_slice() else {
        return None;
    };
    let [operand] = command.operands.as_slice() else {
        return None;
    };
    operand.fields.last().map(String::as_str)
}

/// The fields of Docker's structs that are maps: any key may be asked for.
const MAPS: [&str; 14] = [
    "Annotations",
    "Data",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Status",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
    "Paths",
];

/// How Go prints the nil of a field of this name.
fn nil(field: &str) -> &'static str {
    match field {
        "PidsLimit" | "OomKillDisable" | "Init" | "MemorySwappiness" | "Health" | "Healthcheck"
        | "StopTimeout" | "State" | "Config" | "HostConfig" => "<nil>",
        "Args" | "Binds" | "CapAdd" | "CapDrop" | "Cmd" | "DeviceCgroupRules"
        | "DeviceRequests" | "Devices" | "Dns" | "DnsOptions" | "DnsSearch" | "Entrypoint"
        | "Env" | "ExecIDs" | "ExtraHosts" | "GroupAdd" | "Layers" | "Links" | "MaskedPaths"
        | "Mounts" | "OnBuild" | "ReadonlyPaths" | "RepoDigests" | "RepoTags" | "SecurityOpt"
        | "Shell" | "Ulimits" | "VolumesFrom" | "Warnings" => "[]",
        name if MAPS.contains(&name) => "map[]",
        _ => "<no value>",
    }
}
