//! What we read and write, another implementation reads and writes alike (hickory-proto).

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{DNSClass, Name as Theirs, RData, RecordType};
use proptest::prelude::*;

use super::message::{self, Code, Data, HEADER, Name, Query, kind};

fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let any_label = prop::collection::vec(any::<u8>(), 1..20);
    let host_label = "[a-zA-Z0-9_-]{1,63}".prop_map(String::into_bytes);
    prop::collection::vec(prop_oneof![any_label, host_label], 0..4)
}

fn theirs(labels: &[Vec<u8>]) -> Theirs {
    let mut name = Theirs::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
    name.set_fqdn(true);
    name
}

fn lower(name: &Theirs) -> Vec<Vec<u8>> {
    name.iter().map(<[u8]>::to_ascii_lowercase).collect()
}

fn edns() -> impl Strategy<Value = Option<(u16, u8, bool)>> {
    prop::option::of((any::<u16>(), any::<u8>(), any::<bool>()))
}

prop_compose! {
    fn queries()(
        id in any::<u16>(),
        labels in labels(),
        kind in any::<u16>(),
        edns in edns(),
        desired in any::<bool>(),
    ) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = desired;
        message.add_query(Question::query(theirs(&labels), RecordType::from(kind)));
        if let Some((payload, version, dnssec)) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_version(version).set_dnssec_ok(dnssec);
            message.set_edns(edns);
        }
        message
    }
}

/// Ours says the same about a query as theirs.
fn compare(bytes: &[u8], theirs: &Message) {
    let ours = Query::parse(bytes).unwrap();
    let question = theirs.queries.first().unwrap();
    assert_eq!(ours.id, theirs.metadata.id);
    assert_eq!(ours.kind, u16::from(question.query_type()));
    assert_eq!(ours.class, u16::from(question.query_class()));
    let labels: Vec<Vec<u8>> = ours.name.labels().map(<[u8]>::to_vec).collect();
    assert_eq!(labels, lower(question.name()));
    let edns = ours
        .edns
        .map(|edns| (edns.payload.max(512), edns.version, edns.dnssec));
    let expected = theirs.edns.as_ref().map(|edns| {
        (
            edns.max_payload().max(512),
            edns.version(),
            edns.flags().dnssec_ok,
        )
    });
    assert_eq!(edns, expected);
}

proptest! {
    #[test]
    fn queries_are_read_alike(message in queries()) {
        compare(&message.to_vec().unwrap(), &message);
    }

    /// What they can read as one question, we can; with bytes changed, cut off and added.
    #[test]
    fn damaged_queries_are_read_alike(
        message in queries(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 0..30),
        whole in any::<bool>(),
    ) {
        let mut bytes = message.to_vec().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes.extend(tail);
        let ours = Query::parse(&bytes);
        if let Err(message::Refusal::Tell(code)) = ours {
            let refusal = message::refuse(&bytes, code).unwrap();
            let read = Message::from_vec(&refusal).unwrap();
            prop_assert_eq!(read.metadata.message_type, MessageType::Response);
        }
        let Ok(theirs) = Message::from_vec(&bytes) else { return Ok(()) };
        let metadata = &theirs.metadata;
        if metadata.message_type == MessageType::Query
            && metadata.op_code == OpCode::Query
            && !metadata.truncation
            && theirs.queries.len() == 1
        {
            compare(&bytes, &theirs);
        }
    }

    #[test]
    fn bytes_of_any_kind_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Err(message::Refusal::Tell(code)) = Query::parse(&bytes) {
            prop_assert_eq!(message::refuse(&bytes, code).unwrap().len(), HEADER);
        }
        message::judge(&bytes, HEADER + 5, &bytes);
        Name::parse(&bytes, bytes.len() / 2);
    }

    #[test]
    fn answers_are_understood(
        query in queries(),
        addresses in prop::collection::vec(any::<IpAddr>(), 0..80),
        pointer in prop::option::of("[a-z0-9]{1,63}(\\.[a-z0-9-]{1,20}){0,3}"),
        code in prop::sample::select(vec![
            Code::NoError, Code::ServerFailure, Code::NoSuchName, Code::Refused, Code::BadVersion,
        ]),
        limit in 512usize..5000,
    ) {
        let bytes = query.to_vec().unwrap();
        let parsed = Query::parse(&bytes).unwrap();
        let mut data: Vec<Data> = addresses.into_iter().map(Data::Address).collect();
        data.extend(pointer.iter().map(|name| Data::Pointer(Name::from_text(name).unwrap())));
        let answer = message::answer(&bytes, &parsed, code, &data, limit);
        prop_assert!(answer.len() <= limit);
        let read = Message::from_vec(&answer).unwrap();
        prop_assert_eq!(read.metadata.id, query.metadata.id);
        prop_assert_eq!(read.metadata.message_type, MessageType::Response);
        prop_assert_eq!(read.metadata.recursion_desired, query.metadata.recursion_desired);
        prop_assert_eq!(&read.queries, &query.queries);
        prop_assert_eq!(read.metadata.truncation, read.answers.len() < data.len());
        prop_assert_eq!(read.edns.is_some(), query.edns.is_some());
        // The upper bits of a code are in EDNS; theirs has two names for 16.
        let expected = match code {
            Code::NoError => 0,
            Code::ServerFailure => 2,
            Code::NoSuchName => 3,
            Code::Refused => 5,
            _ if query.edns.is_some() => 16,
            _ => 0,
        };
        prop_assert_eq!(u16::from(read.metadata.response_code), expected);
        for (record, data) in read.answers.iter().zip(&data) {
            prop_assert_eq!(record.ttl, 0);
            prop_assert_eq!(record.dns_class, DNSClass::IN);
            prop_assert_eq!(Some(&record.name), query.queries.first().map(Question::name));
            match (data, &record.data) {
                (Data::Address(IpAddr::V4(ours)), RData::A(theirs)) => prop_assert_eq!(*ours, theirs.0),
                (Data::Address(IpAddr::V6(ours)), RData::AAAA(theirs)) => prop_assert_eq!(*ours, theirs.0),
                (Data::Pointer(ours), RData::PTR(theirs)) => {
                    let ours: Vec<Vec<u8>> = ours.labels().map(<[u8]>::to_vec).collect();
                    prop_assert_eq!(ours, lower(&theirs.0));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        if limit >= answer.len() {
            let shorter = message::shorten(answer.clone(), &parsed, parsed.question_end + 11);
            let read = Message::from_vec(&shorter).unwrap();
            prop_assert!(read.metadata.truncation || shorter == answer);
        }
    }

    #[test]
    fn reverse_names_are_their_addresses(address in any::<IpAddr>()) {
        let theirs = Theirs::from(address);
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(theirs, RecordType::PTR));
        let parsed = Query::parse(&message.to_vec().unwrap()).unwrap();
        prop_assert_eq!(parsed.kind, kind::PTR);
        prop_assert_eq!(parsed.name.to_address(), Some(address));
    }
}
