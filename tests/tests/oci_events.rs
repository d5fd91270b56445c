//! `events --stats` of knarr-oci beside runc's: the same fields with the same kinds of values.

use std::collections::BTreeMap;

use knarr_testkit::oci::Oci;
use serde_json::{Value, json};

/// Each value by its path; of lists the first element counts.
fn fields(value: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                fields(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(list) if !list.is_empty() => fields(&list[0], &format!("{path}[]"), found),
        value => {
            found.insert(path.to_owned(), value.clone());
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

#[test]
fn statistics_have_the_fields_that_runc_prints() {
    let both = [Oci::new("events"), Oci::of("events", "runc")];
    let mut heard = Vec::new();
    for oci in &both {
        oci.bundle("web", |config| {
            config["process"]["args"] = json!(["sleep", "100"]);
            let resources = &mut config["linux"]["resources"];
            resources["memory"] = json!({"limit": 64 << 20});
            resources["pids"] = json!({"limit": 20});
            resources["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
        });
        oci.create("web");
        oci.run(&["start", "web"]).ok();
        let text = oci.run(&["events", "--stats", "web"]).ok();
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&event["type"], &event["id"]),
            (&json!("stats"), &json!("web"))
        );
        let mut found = BTreeMap::new();
        fields(&event["data"], "", &mut found);
        heard.push(found);
    }
    let (ours, theirs) = (&heard[0], &heard[1]);
    // Zeros are left out, and these count what may or may not have happened; runc 1.1 does not know
    // pressure nor v2's memory.peak, and on v2 switches on every controller, huge pages' too.
    let by_chance = |path: &str| {
        path.starts_with(".cpu.throttling.")
            || path.starts_with(".blkio.")
            || path.starts_with(".hugetlb.")
            || [".memory.usage.max", ".memory.cache"].contains(&path)
            || path.contains(".psi.")
    };
    let shown = |found: &BTreeMap<String, Value>| -> Vec<String> {
        found
            .iter()
            .filter(|(path, _)| !by_chance(path))
            .map(|(path, value)| format!("{path}: {}", kind(value)))
            .collect()
    };
    assert_eq!(shown(ours), shown(theirs));
    for path in [".memory.usage.limit", ".pids.limit", ".pids.current"] {
        assert_eq!(ours[path], theirs[path], "{path}");
    }
}
