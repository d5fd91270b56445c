use super::header::number;
use super::*;

/// Everything a reader says about some bytes, fed in pieces of `step` bytes.
fn read(bytes: &[u8], step: usize) -> Result<Vec<(Member, Vec<u8>)>, Error> {
    read_with(bytes, step, Limits::default())
}

fn read_with(bytes: &[u8], step: usize, limits: Limits) -> Result<Vec<(Member, Vec<u8>)>, Error> {
    let mut reader = Reader::new(limits);
    let mut found: Vec<(Member, Vec<u8>)> = Vec::new();
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            let (taken, event) = reader.feed(piece)?;
            match event {
                Some(Event::Member(member)) => found.push((*member, Vec::new())),
                Some(Event::Data(data)) => found.last_mut().unwrap().1.extend(data),
                None => assert_eq!(taken, piece.len()),
            }
            piece = piece.get(taken..).unwrap();
        }
    }
    reader.end()?;
    Ok(found)
}

/// A raw header block.
fn header(name: &str, type_flag: u8, size: &[u8], magic: &[u8; 8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        block.splice(at..at.saturating_add(bytes.len()), bytes.iter().copied());
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(124, size);
    put(156, &[type_flag]);
    put(257, magic);
    sealed(block)
}

fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block.splice(148..156, *b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block.splice(148..156, format!("{sum:06o}\0 ").into_bytes());
    block
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";

/// A header and its data, padded.
fn entry(name: &str, type_flag: u8, data: &[u8], magic: &[u8; 8]) -> Vec<u8> {
    let size = format!("{:011o}", data.len());
    let mut out = header(name, type_flag, size.as_bytes(), magic);
    out.extend(data);
    out.extend(padding(data.len() as u64));
    out
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|(key, value)| {
            let rest = key.len().saturating_add(value.len()).saturating_add(3);
            let len = (1usize..)
                .map(|digits| rest.saturating_add(digits))
                .find(|len| len.to_string().len().saturating_add(rest) == *len)
                .unwrap();
            format!("{len} {key}={value}\n").into_bytes()
        })
        .collect()
}

fn names(bytes: &[u8]) -> Vec<String> {
    let members = read(bytes, 512).unwrap();
    members
        .iter()
        .map(|(member, _)| String::from_utf8_lossy(&member.path).into_owned())
        .collect()
}

#[test]
fn what_is_encoded_is_read_back_in_pieces_of_any_size() {
    let member = Member {
        path: b"d\xffir/".repeat(60),
        link: b"x".repeat(200),
        kind: Kind::Symlink,
        mode: 0o4755,
        uid: 1 << 40,
        gid: 7,
        owner: "j\u{f6}rg".into(),
        group: b"g".repeat(40),
        mtime: Time {
            seconds: -2,
            nanoseconds: 750_000_000,
        },
        xattrs: [
            (b"user.a=b%".to_vec().into(), b"\0\n".to_vec().into()),
            (b"user.empty".to_vec().into(), Box::default()),
        ]
        .into(),
        ..Member::default()
    };
    let file = Member {
        path: b"f".to_vec(),
        size: 700,
        ..Member::default()
    };
    let mut bytes = encode(&member).unwrap();
    bytes.extend(encode(&file).unwrap());
    bytes.extend([b'z'; 700]);
    bytes.extend(padding(700));
    bytes.extend(TRAILER);
    assert_eq!(bytes.len() % 512, 0);
    bytes.extend(b"whatever follows is ignored");
    for step in [1, 7, 511, 512, 513, 1 << 20] {
        let found = read(&bytes, step).unwrap();
        let (read, _) = found.first().unwrap();
        let expected = Member {
            data: read.data,
            ..member.clone()
        };
        assert_eq!(*read, expected);
        let (read, data) = found.get(1).unwrap();
        assert_eq!((read.size, data.as_slice()), (700, &[b'z'; 700][..]));
        assert_eq!(read.data % 512, 0);
    }
}

#[test]
fn numbers_are_octal_or_base_256() {
    let table: [(&[u8], Option<i64>); 12] = [
        (b"0000644\0", Some(0o644)),
        (b"  644 \0", Some(0o644)),
        (b"\0\0\0", Some(0)),
        (b"", Some(0)),
        (b"64\x004", Some(0o64)),
        (b"8", None),
        (b"-1", None),
        (b"\x80\0\0\0\0\0\0\x01", Some(1)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
            Some(i64::MAX),
        ),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        (b"777777777777777777777777", None),
    ];
    for (field, expected) in table {
        assert_eq!(number(field), expected, "{}", field.escape_ascii());
    }
}

#[test]
fn pax_belongs_to_the_next_file_and_never_to_a_long_name() {
    // The smuggling of CVE-2025-62518: a reader that takes the header's size (0) sees the inner
    // tar's file; one that gives `size` to the L header loses its place.
    let inner = entry("smuggled", b'0', b"", USTAR);
    let mut bytes = entry("x", b'x', &pax(&[("size", "512"), ("mtime", "1.5")]), USTAR);
    bytes.extend(entry("././@LongLink", b'L', b"the long name\0", GNU));
    bytes.extend(header("short", b'0', b"00000000000", GNU));
    bytes.extend(&inner);
    bytes.extend(entry("next", b'0', b"", USTAR));
    bytes.extend(TRAILER);
    let found = read(&bytes, 100).unwrap();
    assert_eq!(names(&bytes), ["the long name", "next"]);
    let (member, data) = found.first().unwrap();
    assert_eq!((member.size, data), (512, &inner));
    assert_eq!(member.mtime.nanoseconds, 500_000_000);
}

#[test]
fn global_headers_have_no_effect_and_empty_records_none_either() {
    let mut bytes = entry(
        "g",
        b'g',
        &pax(&[("path", "global"), ("mtime", "7")]),
        USTAR,
    );
    bytes.extend(entry("x", b'x', &pax(&[("path", ""), ("uid", "")]), USTAR));
    bytes.extend(entry("name", b'0', b"", USTAR));
    bytes.extend(TRAILER);
    assert_eq!(names(&bytes), ["name"]);
    assert_eq!(
        read(&bytes, 512).unwrap().first().unwrap().0.mtime.seconds,
        0
    );
}

#[test]
fn only_regular_files_have_data() {
    let mut bytes = Vec::new();
    for flag in [b'1', b'2', b'5', b'6'] {
        bytes.extend(header("lies", flag, b"00000001000", USTAR));
    }
    bytes.extend(header("v7dir/", 0, b"00000000000", b"\0\0\0\0\0\0\0\0"));
    bytes.extend(entry("label", b'V', b"", GNU));
    bytes.extend(entry("odd", b'Z', b"data", USTAR));
    bytes.extend(TRAILER);
    let kinds: Vec<_> = read(&bytes, 512)
        .unwrap()
        .iter()
        .map(|(member, _)| member.kind)
        .collect();
    let expected = [
        Kind::HardLink,
        Kind::Symlink,
        Kind::Dir,
        Kind::Fifo,
        Kind::Dir,
        Kind::File,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn libarchive_attributes_are_decoded_and_schily_wins() {
    let records = pax(&[
        ("LIBARCHIVE.xattr.user.%41b", "aGk"),
        ("LIBARCHIVE.xattr.user.both", "aGk="),
        ("SCHILY.xattr.user.both", "schily"),
    ]);
    let mut bytes = entry("x", b'x', &records, USTAR);
    bytes.extend(entry("f", b'0', b"", USTAR));
    let members = read(&bytes, 512).unwrap();
    let xattrs = &members.first().unwrap().0.xattrs;
    assert_eq!(
        xattrs.get(&b"user.Ab"[..]).map(|v| &v[..]),
        Some(&b"hi"[..])
    );
    assert_eq!(
        xattrs.get(&b"user.both"[..]).map(|v| &v[..]),
        Some(&b"schily"[..])
    );
}

#[test]
fn malformed_archives_are_refused_with_their_place() {
    let file = entry("f", b'0', b"data", USTAR);
    let mut lone_zero = vec![0; 512];
    lone_zero.extend(&file);
    let mut checksum = file.clone();
    checksum.splice(0..1, *b"g");
    let with = |records: &[u8]| [entry("x", b'x', records, USTAR), file.clone()].concat();
    let sparse = |map: &str, real: &str| {
        with(&pax(&[
            ("GNU.sparse.major", "0"),
            ("GNU.sparse.minor", "1"),
            ("GNU.sparse.size", real),
            ("GNU.sparse.map", map),
        ]))
    };
    let table: Vec<(&str, Vec<u8>, Reason)> = vec![
        (
            "header cut off",
            file.get(..300).unwrap().to_vec(),
            Reason::Truncated,
        ),
        (
            "data cut off",
            file.get(..514).unwrap().to_vec(),
            Reason::Truncated,
        ),
        ("lone zeros", lone_zero, Reason::LoneZeroBlock),
        ("checksum", checksum, Reason::Checksum),
        ("not a tar", vec![b'A'; 1024], Reason::Checksum),
        (
            "negative size",
            header("f", b'0', &[0xff; 12], USTAR),
            Reason::Number("size"),
        ),
        (
            "pax without file",
            entry("x", b'x', &pax(&[("path", "p")]), USTAR),
            Reason::Dangling,
        ),
        ("pax without length", with(b"path=x\n"), Reason::Pax),
        ("pax length lies", with(b"99 path=x\n"), Reason::Pax),
        ("pax length short", with(b"8 path=x\n"), Reason::Pax),
        ("pax without newline", with(b"9 path=xy"), Reason::Pax),
        (
            "pax size negative",
            with(&pax(&[("size", "-1")])),
            Reason::Pax,
        ),
        ("pax NUL", with(&pax(&[("path", "a\0b")])), Reason::Pax),
        ("sparse overlap", sparse("0,3,2,1", "10"), Reason::Sparse),
        ("sparse beyond end", sparse("0,2,9,2", "10"), Reason::Sparse),
        (
            "sparse overflow",
            sparse("18446744073709551615,4", "10"),
            Reason::Sparse,
        ),
        ("sparse odd", sparse("0,2,3", "10"), Reason::Sparse),
        ("sparse sum", sparse("0,3", "10"), Reason::Sparse),
        (
            "multi-volume",
            header("f", b'M', b"00000000000", GNU),
            Reason::MultiVolume,
        ),
    ];
    for (what, bytes, reason) in table {
        for step in [13, 4096] {
            let error = read(&bytes, step).unwrap_err();
            assert_eq!(error.reason, reason, "{what}");
            assert!(error.to_string().contains("at byte"), "{error}");
        }
    }
}

#[test]
fn memory_is_bounded_whatever_the_sizes_say() {
    let limits = Limits {
        extended_header: 1000,
        segments: 4,
    };
    let reason = |bytes: &[u8]| read_with(bytes, 512, limits).unwrap_err().reason;
    for flag in [b'x', b'g', b'L', b'K'] {
        let bytes = header("f", flag, b"77777777777", USTAR);
        assert!(matches!(
            reason(&bytes),
            Reason::TooLarge { limit: 1000, .. }
        ));
    }
    let too_many = pax(&[("GNU.sparse.map", "0,1,2,1,4,1,6,1,8,1")]);
    let bytes = [
        entry("x", b'x', &too_many, USTAR),
        entry("f", b'0', b"12345", USTAR),
    ]
    .concat();
    assert!(matches!(reason(&bytes), Reason::TooLarge { limit: 4, .. }));
    let v1 = pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]);
    let bytes = [
        entry("x", b'x', &v1, USTAR),
        entry(
            "f",
            b'0',
            &[b"999999999\n".as_slice(), &[0; 502]].concat(),
            USTAR,
        ),
    ]
    .concat();
    assert!(matches!(reason(&bytes), Reason::TooLarge { limit: 4, .. }));
}

#[test]
fn no_damage_to_any_byte_panics() {
    let mut bytes = entry(
        "x",
        b'x',
        &pax(&[
            ("path", "p"),
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "9"),
        ]),
        USTAR,
    );
    bytes.extend(entry(
        "f",
        b'0',
        &[b"1\n4\n5\n".as_slice(), &[0; 506], b"hello"].concat(),
        USTAR,
    ));
    bytes.extend(entry("l", b'L', b"long\0", GNU));
    bytes.extend(entry("s", b'0', b"abc", GNU));
    bytes.extend(TRAILER);
    assert_eq!(names(&bytes), ["p", "long"]);
    for at in 0..bytes.len() {
        for value in [0u8, b'9', 0xff] {
            let mut damaged = bytes.clone();
            *damaged.get_mut(at).unwrap() = value;
            // With the checksum put right, so that the damage gets further.
            let block = at - at % 512;
            let header = damaged.get(block..block + 512).unwrap().to_vec();
            damaged.splice(block..block + 512, sealed(header));
            read(&damaged, 512).ok();
            damaged.truncate(at);
            read(&damaged, 700).ok();
        }
    }
}

#[test]
fn a_short_ustar_header_is_golden() {
    let member = Member {
        path: b"etc/hostname".to_vec(),
        mode: 0o644,
        size: 5,
        mtime: Time {
            seconds: 1_700_000_000,
            nanoseconds: 0,
        },
        owner: b"root".to_vec(),
        ..Member::default()
    };
    let bytes = encode(&member).unwrap();
    let text: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "etc/hostname0000644000000000000000000000000514524770400012462 0ustar00root00000000000000"
    );
}
