//! What a question is answered with: from the container's networks, or by somebody else.

use std::net::IpAddr;

use super::message::{self, CLASS_ANY, Code, Data, IN, Name, Query, kind};
use super::zone::{Found, Zone};

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// These bytes go back to the client.
    Known(Vec<u8>),
    /// The host's servers are asked.
    Forward,
}

/// Decides about a query, whose bytes are `message`. A name that exists without a record of the
/// type asked for is answered with nothing and no error (RFC 2308, 2.2), so that resolvers which
/// ask for A and AAAA at once keep what they got. `turn` rotates the addresses of a name with
/// several; `limit` is the most bytes of the answer.
pub(super) fn decide(
    message: &[u8],
    query: &Query,
    zone: &Zone,
    turn: usize,
    limit: usize,
) -> Answer {
    let known =
        |code, data: &[Data]| Answer::Known(message::answer(message, query, code, data, limit));
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return known(Code::BadVersion, &[]);
    }
    if query.class != IN && query.class != CLASS_ANY {
        return Answer::Forward;
    }
    if let Some(address) = query.name.to_address() {
        let Some(names) = zone.names_of(address) else {
            return Answer::Forward;
        };
        let asked = matches!(query.kind, kind::PTR | kind::ANY);
        let data: Vec<Data> = names
            .iter()
            .filter(|_| asked)
            .filter_map(|name| Name::from_text(name).map(Data::Pointer))
            .collect();
        return known(Code::NoError, &data);
    }
    let Some(name) = query.name.to_host_name() else {
        return Answer::Forward;
    };
    let wanted = |address: &IpAddr| match query.kind {
        kind::A => address.is_ipv4(),
        kind::AAAA => address.is_ipv6(),
        kind => kind == kind::ANY,
    };
    match zone.find(&name, wanted) {
        Found::Nothing => Answer::Forward,
        Found::Addresses(mut addresses) => {
            let count = addresses.len().max(1);
            addresses.rotate_left(turn % count);
            let data: Vec<Data> = addresses.into_iter().map(Data::Address).collect();
            known(Code::NoError, &data)
        }
    }
}
