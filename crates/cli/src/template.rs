//! Go templates, as `--format` takes them.
//!
//! The language is that of Go's `text/template` without `define`, `template` and `block`, which no
//! format needs, and with Docker's functions added:
//!
//! ```text
//! template = { text | "{{" [ "- " ] action [ " -" ] "}}" }
//! action   = "/*" comment "*/" | pipeline
//!          | "if" pipeline | "else" [ ( "if" | "with" ) pipeline ] | "end" | "with" pipeline
//!          | "range" [ "$i" [ "," "$e" ] ":=" ] pipeline | "break" | "continue"
//! pipeline = [ "$x" ( ":=" | "=" ) ] command { "|" command }
//! command  = operand { operand }            a function, a field with arguments, or one value
//! operand  = ( "." | "$" | "$x" | ".Field" | "(" pipeline ")" | literal | function ) { ".Field" }
//! literal  = "text" | `raw` | 'c' | 12 | 1.5 | true | false | nil
//! ```
//!
//! Functions: `and or not eq ne lt le gt ge index slice len print printf println html urlquery`
//! of Go; `json join split lower upper title pad truncate` of Docker.
//!
//! Values are JSON values; objects print as Go prints maps (`map[a:1 b:2]`, keys sorted). Errors are
//! in Go's words with its positions, so that what people find on the web about them is true here.

mod builtin;
mod eval;
mod format;
mod lex;
mod parse;

use serde_json::Value;

/// A template that has been understood.
#[derive(Debug)]
pub(crate) struct Template {
    source: String,
    nodes: Vec<parse::Node>,
}

/// A field that is computed, such as `.Label "name"`: name and arguments to a value.
pub(crate) type Method<'a> = &'a dyn Fn(&str, &[Value]) -> Option<Value>;

/// What a template is applied to.
pub(crate) struct Data<'a> {
    /// The value of `.` and `$`.
    pub(crate) root: &'a Value,
    /// Computed fields of the root.
    pub(crate) method: Method<'a>,
    /// Go's name for the root's type, which error texts show; without one the root is a map.
    pub(crate) kind: Option<&'a str>,
    /// Whether the titles of a table are made: then functions that change a text leave it alone.
    pub(crate) titles: bool,
    /// Whether the data stands for Go's structs: a field is found in any case (`.ID` is `Id`), and
    /// null prints as Go prints a list, map or pointer that is nil.
    pub(crate) structs: bool,
}

impl<'a> Data<'a> {
    /// Plain data, as `inspect` shows it.
    pub(crate) fn plain(root: &'a Value) -> Self {
        Self {
            root,
            method: &|_, _| None,
            kind: None,
            titles: false,
            structs: false,
        }
    }
}

impl Template {
    /// Reads a template. The error is Go's: `template: :1: unclosed action`.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        Ok(Self {
            source: source.to_owned(),
            nodes: parse::parse(source)?,
        })
    }

    /// Applies it. The error is Go's: `template: :1:2: executing "" at <.Foo>: …`.
    pub(crate) fn render(&self, data: &Data<'_>) -> Result<String, String> {
        eval::render(&self.source, &self.nodes, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn apply(source: &str, root: &Value) -> Result<String, String> {
        Template::parse(source)?.render(&Data::plain(root))
    }

    fn data() -> Value {
        json!({
            "Name": "web", "Pid": 42, "On": true, "Off": false, "Ratio": 0.25, "Nothing": null,
            "Zero": 0, "Empty": "",
            "State": {"Status": "running", "Exit": {"Code": 3}},
            "List": ["a", "b", "c"], "Map": {"z": 1, "a": 2}, "None": [], "NoMap": {},
            "Mounts": [{"S": "/a", "D": "/b"}, {"S": "/c", "D": "/d"}],
            "Weird": {"a-b": 1},
        })
    }

    /// Each expectation was printed by Go's text/template with Docker's functions.
    #[test]
    fn templates_print_what_go_prints() {
        let data = data();
        for (source, expected) in [
            ("plain", "plain"),
            ("{{.Name}} {{.Pid}} {{.On}} {{.Ratio}}", "web 42 true 0.25"),
            ("{{ .State.Exit.Code }}", "3"),
            ("{{$.Name}}", "web"),
            (
                "{{.List}} {{.Map}} {{.None}} {{.NoMap}}",
                "[a b c] map[a:2 z:1] [] map[]",
            ),
            ("{{.Nothing}}", "<no value>"),
            ("{{.Mounts}}", "[map[D:/b S:/a] map[D:/d S:/c]]"),
            ("a {{- .Name -}} b", "awebb"),
            ("a {{.Name -}}\n\n b{{/* no */}}c", "a webbc"),
            ("{{- /* no */ -}} x", "x"),
            ("{{if .On}}yes{{else}}no{{end}}", "yes"),
            ("{{if .Off}}yes{{else}}no{{end}}", "no"),
            (
                "{{if .Zero}}a{{else if .Empty}}b{{else if .Name}}c{{else}}d{{end}}",
                "c",
            ),
            (
                "{{if .None}}a{{end}}{{if .NoMap}}b{{end}}{{if .Nothing}}c{{end}}.",
                ".",
            ),
            ("{{with .State}}{{.Status}}{{end}}", "running"),
            ("{{with .Empty}}a{{else}}b{{end}}", "b"),
            ("{{with .Empty}}a{{else with .Name}}{{.}}{{end}}", "web"),
            ("{{with $x := .State}}{{$x.Exit.Code}}{{end}}", "3"),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b><c>"),
            ("{{range $e := .List}}{{$e}},{{end}}", "a,b,c,"),
            (
                "{{range $i, $e := .List}}{{$i}}={{$e}} {{end}}",
                "0=a 1=b 2=c ",
            ),
            ("{{range $k, $v := .Map}}{{$k}}={{$v}} {{end}}", "a=2 z=1 "),
            ("{{range .None}}x{{else}}none{{end}}", "none"),
            ("{{range .Mounts}}{{.S}}:{{.D}} {{end}}", "/a:/b /c:/d "),
            (
                "{{range $i, $e := .List}}{{if $i}}, {{end}}{{$e}}{{end}}",
                "a, b, c",
            ),
            (
                "{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}",
                "a",
            ),
            (
                "{{range .List}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}",
                "ac",
            ),
            ("{{$x := 1}}{{if .On}}{{$x = 2}}{{end}}{{$x}}", "2"),
            ("{{$x := 1}}{{if .On}}{{$x := 2}}{{end}}{{$x}}", "1"),
            (
                "{{eq .Name \"web\"}} {{ne .Pid 42}} {{lt .Pid 43}} {{ge 1 2}}",
                "true false true false",
            ),
            (
                "{{eq .Name \"a\" \"web\"}} {{gt \"b\" \"a\"}} {{le 1.5 1.5}}",
                "true true true",
            ),
            (
                "{{and .On .Name}} {{or .Off .Zero \"x\"}} {{not .On}}",
                "web x false",
            ),
            ("{{and .Off .Missing}}", "false"),
            ("{{len .List}} {{len .Name}} {{len .Map}}", "3 3 2"),
            (
                "{{index .List 1}} {{index .Map \"z\"}} {{index .Weird \"a-b\"}}",
                "b 1 1",
            ),
            (
                "{{(index .Mounts 0).D}} {{index .State \"Exit\" \"Code\"}}",
                "/b 3",
            ),
            (
                "{{slice .Name 1}} {{slice .Name 1 2}} {{slice .List 1}}",
                "eb e [b c]",
            ),
            (
                "{{.Name | printf \"%s!\"}} {{printf \"%-6s|%5d|%q\" .Name .Pid .Name}}",
                "web! web   |   42|\"web\"",
            ),
            (
                "{{printf \"%v %v %t %.2f %x %05d %%\" .List .Map .On .Ratio 255 42}}",
                "[a b c] map[a:2 z:1] true 0.25 ff 00042 %",
            ),
            (
                "{{print .Name .Pid}} {{print 1 2}} {{println .Name}}",
                "web42 1 2 web\n",
            ),
            (
                "{{json .State}} {{json .Name}} {{json .Nothing}}",
                "{\"Status\":\"running\",\"Exit\":{\"Code\":3}} \"web\" null",
            ),
            (
                "{{join .List \",\"}} {{join (split \"a.b\" \".\") \"-\"}}",
                "a,b,c a-b",
            ),
            (
                "{{upper .Name}} {{lower \"ABC\"}} {{title \"ab cd\"}}",
                "WEB abc Ab Cd",
            ),
            (
                "{{truncate .Name 2}}|{{truncate .Name 9}}|{{pad .Name 1 2}}",
                "we|web| web  ",
            ),
            (
                "{{`raw \\n`}} {{\"a\\tb\\u00e9\\\"\"}} {{'a'}}",
                "raw \\n a\tbé\" 97",
            ),
            (
                "{{1}} {{-3}} {{0x10}} {{1_000}} {{1.50}} {{true}}",
                "1 -3 16 1000 1.5 true",
            ),
            (
                "{{html \"<a&b>\"}} {{urlquery \"a b&\"}}",
                "&lt;a&amp;b&gt; a+b%26",
            ),
            ("{{.Name|upper|lower}}", "web"),
            ("{{ (.State).Status }}", "running"),
            ("{{range $i := 3}}{{$i}}{{end}}", "012"),
            ("{{ .Pid | eq 42 }}", "true"),
            ("{{ len (slice .List 0 2) | printf \"%03d\" }}", "002"),
            ("}} {", "}} {"),
            ("{{.Name | }}", "web"),
            (
                "{{1.5}} {{1e30}} {{0.00001}} {{123456789.0}}",
                "1.5 1e+30 1e-05 1.23456789e+08",
            ),
            ("{{print 1 \"a\" 2 3}}", "1a2 3"),
            (
                "{{printf \"%d %T %v\" \"a\" 1.5 nil}}",
                "%!d(string=a) float64 <nil>",
            ),
            ("{{title \"ab cd-ef\"}}", "Ab Cd-Ef"),
        ] {
            assert_eq!(apply(source, &data), Ok(expected.to_owned()), "{source}");
        }
    }

    #[test]
    fn errors_are_in_gos_words() {
        let data = data();
        for (source, expected) in [
            ("{{.Name", "template: :1: unclosed action"),
            ("a\n{{.Name", "template: :2: unclosed action"),
            ("{{.Name}", "template: :1: bad character U+007D '}'"),
            ("{{end}}", "template: :1: unexpected {{end}}"),
            ("{{if .On}}x", "template: :1: unexpected EOF"),
            ("{{else}}", "template: :1: unexpected {{else}}"),
            (
                "{{foo .Name}}",
                "template: :1: function \"foo\" not defined",
            ),
            ("{{$x}}", "template: :1: undefined variable \"$x\""),
            ("{{}}", "template: :1: missing value for command"),
            ("{{if}}x{{end}}", "template: :1: missing value for if"),
            ("{{\"abc}}", "template: :1: unterminated quoted string"),
            ("{{/* abc", "template: :1: unclosed comment"),
            ("{{(.Name}}", "template: :1: unclosed left paren"),
            (
                "{{1|2}}",
                "template: :1: non executable command in pipeline stage 2",
            ),
            (
                "{{'ab'}}",
                "template: :1: malformed character constant: 'ab'",
            ),
            ("{{1x}}", "template: :1: bad number syntax: \"1x\""),
            ("{{`a", "template: :1: unterminated raw quoted string"),
            (
                "{{if 1}}a{{else}}b{{else}}c{{end}}",
                "template: :1: expected end; found {{else}}",
            ),
            ("{{break}}", "template: :1: {{break}} outside {{range}}"),
            ("{{#}}", "template: :1: unexpected \"#\" in command"),
            (
                "{{.Foo}}",
                "template: :1:2: executing \"\" at <.Foo>: map has no entry for key \"Foo\"",
            ),
            (
                "{{.State.Foo}}",
                "template: :1:8: executing \"\" at <.State.Foo>: map has no entry for key \"Foo\"",
            ),
            (
                "{{.Name.X}}",
                "template: :1:7: executing \"\" at <.Name.X>: can't evaluate field X in type \
                 interface {}",
            ),
            (
                "{{.Nothing.X}}",
                "template: :1:10: executing \"\" at <.Nothing.X>: nil pointer evaluating \
                 interface {}.X",
            ),
            (
                "{{index .List 9}}",
                "template: :1:2: executing \"\" at <index .List 9>: error calling index: index \
                 out of range: 9",
            ),
            (
                "{{not 1 2}}",
                "template: :1:2: executing \"\" at <not>: wrong number of args for not: want 1 got 2",
            ),
            (
                "{{nil}}",
                "template: :1:2: executing \"\" at <nil>: nil is not a command",
            ),
            (
                "{{\"a\" \"b\"}}",
                "template: :1:2: executing \"\" at <\"a\">: can't give argument to non-function \"a\"",
            ),
            (
                "{{.Name 1}}",
                "template: :1:2: executing \"\" at <.Name>: Name is not a method but has arguments",
            ),
            (
                "{{range $i,$e := 3}}{{end}}",
                "template: :1:17: executing \"\" at <3>: can't use 3 to iterate over more than one \
                 variable",
            ),
            (
                "{{range .Pid2}}{{end}}",
                "template: :1:8: executing \"\" at <.Pid2>: map has no entry for key \"Pid2\"",
            ),
            (
                "{{range .Name}}{{end}}",
                "template: :1:8: executing \"\" at <.Name>: range can't iterate over web",
            ),
            (
                "{{lt 1 \"a\"}}",
                "template: :1:2: executing \"\" at <lt 1 \"a\">: error calling lt: incompatible \
                 types for comparison",
            ),
        ] {
            assert_eq!(apply(source, &data), Err(expected.to_owned()), "{source}");
        }
    }

    #[test]
    fn computed_fields_take_arguments() {
        let root = json!({"Name": "web"});
        let method = |name: &str, args: &[Value]| match (name, args) {
            ("Label", [Value::String(key)]) => Some(json!(format!("label {key}"))),
            _ => None,
        };
        let data = Data {
            root: &root,
            method: &method,
            kind: Some("*formatter.ContainerContext"),
            titles: false,
            structs: false,
        };
        let render = |source: &str| Template::parse(source).and_then(|t| t.render(&data));
        assert_eq!(
            render("{{.Label \"a\"}} {{.Name}}"),
            Ok("label a web".to_owned())
        );
        assert_eq!(render("{{.Label \"a\" | upper}}"), Ok("LABEL A".to_owned()));
        assert_eq!(
            render("{{range $i := 1}}{{$.Label \"b\"}}{{end}}"),
            Ok("label b".to_owned())
        );
        assert_eq!(
            render("{{.Foo}}"),
            Err(
                "template: :1:2: executing \"\" at <.Foo>: can't evaluate field Foo in type \
                 *formatter.ContainerContext"
                    .to_owned()
            )
        );
    }

    #[test]
    fn data_of_structs_prints_nil_as_go_does() {
        let root = json!({
            "Id": "x", "Config": {"Cmd": null, "Labels": null}, "Init": null,
            "Labels": {"a": "1"}, "Networks": {"none": {"IP": ""}},
        });
        let render = |source: &str| {
            let data = Data {
                structs: true,
                ..Data::plain(&root)
            };
            Template::parse(source).and_then(|t| t.render(&data))
        };
        for (source, expected) in [
            ("{{.ID}} {{.Id}}", "x x"),
            (
                "{{.Config.Cmd}} {{.Config.Labels}} {{.Init}}",
                "[] map[] <nil>",
            ),
            ("{{range .Config.Cmd}}x{{end}}{{len .Config.Cmd}}", "0"),
            (
                "{{index .Labels \"a\"}}{{index .Labels \"zz\"}}|{{index .Config.Labels \"a\"}}|",
                "1||",
            ),
            (
                "{{.Labels.zz}} {{.Networks.foo.IP}}",
                "<no value> <no value>",
            ),
            ("{{json .Config}}", "{\"Cmd\":null,\"Labels\":null}"),
        ] {
            assert_eq!(render(source), Ok(expected.to_owned()), "{source}");
        }
    }

    /// No text makes the reader or the interpreter panic, loop or eat all memory.
    #[test]
    fn no_text_breaks_the_engine() {
        let data = data();
        let pieces = [
            "{{",
            "}}",
            "{{-",
            "-}}",
            " ",
            ".",
            "$",
            "$x",
            ":=",
            "=",
            "|",
            "(",
            ")",
            ",",
            "if ",
            "else",
            "end",
            "range ",
            "with ",
            ".Name",
            ".List",
            "\"",
            "`",
            "'",
            "1",
            "-",
            "é",
            "\n",
            "printf",
            "index ",
            "len ",
            "%d",
            "/*",
            "*/",
            "break",
            "slice ",
            "\\",
            "%999999999d",
        ];
        // xorshift: the same texts on every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..(state % 12) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let index = usize::try_from(state % 36).unwrap();
                text.push_str(pieces[index]);
            }
            state = state.wrapping_add(0x1234_5678_9abc_def1) | 1;
            let _result = apply(&text, &data);
            let _result = apply(&format!("{{{{{text}}}}}"), &data);
        }
        assert!(apply("{{(1)}}", &data).is_ok());
        let deep = format!("{{{{{}1{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(apply(&deep, &data).is_err());
    }
}
