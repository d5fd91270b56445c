//! A fixed number of inputs for every target, the same each time; GNU tar on what the writer makes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use knarr_fuzz::{Random, TARGETS, fuzz};
use knarr_layer::tar::{self, Kind, Member};

#[test]
fn no_input_is_more_than_a_parser_can_take() {
    for target in &TARGETS {
        let most = if target.name == "tar" { 20_000 } else { 60_000 };
        for seed in [1, 2] {
            if let Some(finding) = fuzz(target, seed, |count| count < most / 2) {
                let input = String::from_utf8_lossy(&finding.input);
                panic!("{}: {}\n{input:?}", target.name, finding.what);
            }
        }
    }
}

#[test]
fn gnu_tar_reads_what_is_written() {
    let mut random = Random::new(3);
    let mut archive = Vec::new();
    let mut expected = Vec::new();
    for n in 0..300 {
        let parts = 1 + random.below(6);
        let names: Vec<String> = (0..parts)
            .map(|_| {
                let length = 1 + random.below(90);
                let letter =
                    |r: &mut Random| *r.of(b"abcdefghijklmnopqrstuvwxyz0123456789_-+.").unwrap();
                (0..length)
                    .map(|_| char::from(letter(&mut random)))
                    .collect()
            })
            .collect();
        let path = format!("{n}/{}", names.join("/"));
        let size = random.below(2000);
        let member = Member {
            path: path.clone().into_bytes(),
            kind: Kind::File,
            mode: 0o640,
            uid: i64::try_from(random.below(1 << 31)).unwrap(),
            size: size as u64,
            data_size: size as u64,
            ..Member::default()
        };
        archive.extend(tar::encode(&member).unwrap());
        archive.resize(archive.len() + size, b'x');
        archive.extend(tar::padding(size as u64));
        expected.push(format!("{} {size} {path}", member.uid));
    }
    archive.extend(tar::TRAILER);
    let mut child = Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner", "--file=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(&archive));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success());
    let listed: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            // `-rw-r----- 0/0 5 1970-01-01 00:00 name`
            let words: Vec<&str> = line.split_whitespace().collect();
            let owner = words[1].split('/').next().unwrap();
            format!("{owner} {} {}", words[2], words[5])
        })
        .collect();
    assert_eq!(listed, expected);
}
