//! What the firewall of this host, anybody's, does to packets that are forwarded: the rules are read
//! from the kernel and followed for one packet. Knarr never overrules them; it says who drops what,
//! and how to allow it.
//!
//! Followed are conditions on interfaces, addresses, ports, the protocol and the connection's state,
//! sets, maps, jumps; of iptables also what is not translated to nf_tables, and `iptables-legacy`. A
//! rule with a condition that is none of these is taken not to apply.

mod legacy;
mod packet;
mod rules;

use std::fmt;

use serde::Serialize;

pub use packet::Packet;
pub use rules::Ruleset;

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Docker's chains are in the same table.
    Docker,
    /// ufw's chains are.
    Ufw,
    /// firewalld's table.
    Firewalld,
    /// A table of iptables that is neither's.
    Iptables,
    /// Another table.
    Nftables,
}

/// What becomes of a packet, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// `table ip filter, chain FORWARD: policy`.
    pub place: Place,
    /// Who keeps that table.
    pub system: System,
}

/// A place in the firewall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// `ip`, `ip6`, `inet`; `iptables-legacy` and `ip6tables-legacy` for the old ones.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; its number in the chain with the old ones; `None` is the chain's policy.
    pub rule: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            chain,
            rule,
        } = self;
        write!(f, "table {family} {table}, chain {chain}: ")?;
        match rule {
            Some(rule) => write!(f, "rule {rule}"),
            None => write!(f, "policy drop"),
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker's",
            Self::Ufw => "ufw's",
            Self::Firewalld => "firewalld's",
            Self::Iptables => "iptables'",
            Self::Nftables => "nftables'",
        })
    }
}

impl Dropped {
    /// The commands that let a bridge's packets pass: where Knarr's own table drops them, they stay
    /// dropped. Words of a command line each.
    pub fn remedy(&self, bridge: &str) -> Vec<Vec<String>> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect();
        let program = match self.place.family.as_str() {
            "ip6" => "ip6tables",
            "ip" => "iptables",
            // `iptables-legacy` and its like are called as they are.
            other => other,
        };
        let both = |line: &dyn Fn(&str) -> String| {
            [("-i", "in"), ("-o", "out")]
                .map(|(flag, _)| words(line(flag)))
                .to_vec()
        };
        match self.system {
            System::Ufw => vec![
                words(format!("ufw route allow in on {bridge}")),
                words(format!("ufw route allow out on {bridge}")),
            ],
            System::Docker => {
                both(&|flag| format!("{program} -I DOCKER-USER {flag} {bridge} -j ACCEPT"))
            }
            System::Firewalld => vec![
                words(format!(
                    "firewall-cmd --permanent --zone=trusted --add-interface={bridge}"
                )),
                words("firewall-cmd --reload".to_owned()),
            ],
            System::Iptables => {
                let chain = &self.place.chain;
                both(&|flag| format!("{program} -I {chain} {flag} {bridge} -j ACCEPT"))
            }
            System::Nftables => {
                let Place {
                    family,
                    table,
                    chain,
                    ..
                } = &self.place;
                ["iifname", "oifname"]
                    .map(|key| {
                        words(format!(
                            "nft insert rule {family} {table} {chain} {key} {bridge} accept"
                        ))
                    })
                    .to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn run(line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        let (program, args) = words.split_first().unwrap();
        let output = std::process::Command::new(program).args(args).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }

    fn packet(ipv6: bool, inward: bool) -> Packet {
        let (inner, outer) = if ipv6 {
            ("fd00::2", "2001:db8::9")
        } else {
            ("10.0.0.2", "192.0.2.9")
        };
        let (input, output, source, destination) = if inward {
            ("eth0", "knarr0", outer, inner)
        } else {
            ("knarr0", "eth0", inner, outer)
        };
        Packet {
            input: input.to_owned(),
            output: output.to_owned(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            translated: inward,
        }
    }

    /// Who drops an IPv4 packet, on its way out and on its way in.
    fn dropped() -> [Option<String>; 2] {
        let rules = Ruleset::load().unwrap();
        [false, true].map(|inward| {
            let dropped = rules.forward(&packet(false, inward), None)?;
            Some(format!("{} {}", dropped.system, dropped.place))
        })
    }

    fn remedy() -> Vec<String> {
        let rules = Ruleset::load().unwrap();
        let dropped = rules.forward(&packet(false, false), None).unwrap();
        let lines = dropped.remedy("knarr0");
        lines.iter().map(|words| words.join(" ")).collect()
    }

    fn is_dropped_by(wanted: &str) {
        assert_eq!(
            dropped(),
            [Some(wanted.to_owned()), Some(wanted.to_owned())]
        );
    }

    fn passes() {
        assert_eq!(dropped(), [None, None]);
    }

    #[test]
    fn what_others_drop_is_found_and_allowed_by_the_remedy() {
        if !crate::testing::private("what_others_drop_is_found_and_allowed_by_the_remedy") {
            return;
        }
        passes();
        for program in ["iptables", "iptables-legacy"] {
            let family = if program == "iptables" { "ip" } else { program };
            // As Docker leaves it.
            run(&format!("{program} -P FORWARD DROP"));
            is_dropped_by(&format!(
                "iptables' table {family} filter, chain FORWARD: policy drop"
            ));
            run(&format!("{program} -N DOCKER-USER"));
            run(&format!("{program} -A FORWARD -j DOCKER-USER"));
            run(&format!("{program} -A FORWARD -o docker0 -j ACCEPT"));
            run(&format!("{program} -A FORWARD -i docker+ -j ACCEPT"));
            run(&format!(
                "{program} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            ));
            run(&format!("{program} -A DOCKER-USER -j RETURN"));
            is_dropped_by(&format!(
                "Docker's table {family} filter, chain FORWARD: policy drop"
            ));
            let lines = remedy();
            assert_eq!(
                lines,
                [
                    format!("{program} -I DOCKER-USER -i knarr0 -j ACCEPT"),
                    format!("{program} -I DOCKER-USER -o knarr0 -j ACCEPT")
                ]
            );
            for line in &lines {
                run(line);
            }
            passes();
            run(&format!("{program} -F DOCKER-USER"));
            run(&format!(
                "{program} -A FORWARD ! -i eth9 -p tcp -s 10.0.0.0/8 -j ACCEPT"
            ));
            run(&format!(
                "{program} -A FORWARD ! -s 10.0.0.0/8 -p udp -j ACCEPT"
            ));
            let [out, inward] = dropped();
            assert!(out.is_none() && inward.is_some(), "{out:?} {inward:?}");
            run(&format!("{program} -P FORWARD ACCEPT"));
            passes();
            run(&format!(
                "{program} -A FORWARD -o knarr0 -m comment --comment no -j REJECT"
            ));
            let [out, inward] = dropped();
            assert!(out.is_none() && inward.is_some(), "{out:?} {inward:?}");
            run(&format!("{program} -F"));
            // As ufw leaves it.
            run(&format!("{program} -P FORWARD DROP"));
            for chain in ["ufw-before-forward", "ufw-user-forward"] {
                run(&format!("{program} -N {chain}"));
            }
            run(&format!("{program} -A FORWARD -j ufw-before-forward"));
            run(&format!(
                "{program} -A ufw-before-forward -j ufw-user-forward"
            ));
            run(&format!(
                "{program} -A ufw-before-forward -p icmp -j ACCEPT"
            ));
            is_dropped_by(&format!(
                "ufw's table {family} filter, chain FORWARD: policy drop"
            ));
            assert_eq!(
                remedy(),
                [
                    "ufw route allow in on knarr0",
                    "ufw route allow out on knarr0"
                ]
            );
            // What ufw makes of them.
            run(&format!(
                "{program} -A ufw-user-forward -i knarr0 -j ACCEPT"
            ));
            run(&format!(
                "{program} -A ufw-user-forward -o knarr0 -j ACCEPT"
            ));
            passes();
            run(&format!("{program} -P FORWARD ACCEPT"));
            run(&format!("{program} -F"));
            run(&format!("{program} -X"));
        }
    }

    #[test]
    fn rules_of_nftables_are_followed() {
        if !crate::testing::private("rules_of_nftables_are_followed") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules");
        // Each decides about a packet on its way out, and one on its way in.
        for (rules, out, inward) in [
            ("", true, true),
            ("iifname knarr0 accept", false, true),
            ("iifname { docker0, knarr0 } accept", false, true),
            (
                "ip daddr 10.0.0.0/24 tcp dport { 22, 80-90 } accept",
                true,
                false,
            ),
            ("ip daddr 10.0.0.0/24 tcp dport 81-90 accept", true, true),
            (
                "ct state vmap { established : accept, new : jump more }",
                false,
                false,
            ),
            ("ct state new ct status dnat accept", true, false),
            (
                "iifname . ip daddr { knarr0 . 192.0.2.0/24 } accept",
                false,
                true,
            ),
            ("meta mark & 0xff == 0 oifname != eth0 accept", true, false),
            ("fib daddr type local accept", true, true),
            ("oifname knarr* counter goto more", true, false),
            ("ip saddr @known accept", false, true),
            ("counter log limit rate 9/second accept", false, false),
            ("meta l4proto != tcp accept", true, true),
        ] {
            let text = format!(
                "flush ruleset\ntable inet theirs {{\n\
                 set known {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/24, 10.9.0.0-10.9.0.7 }} }}\n\
                 chain more {{ accept\n }}\n\
                 chain forward {{ type filter hook forward priority 10; policy drop;\n {rules}\n }}\n\
                 chain input {{ type filter hook input priority 0; policy drop;\n }}\n}}\n"
            );
            std::fs::write(&file, text).unwrap();
            run(&format!("nft -f {}", file.display()));
            let found = dropped().map(|dropped| dropped.is_some());
            assert_eq!(found, [out, inward], "{rules}");
        }
        assert_eq!(
            remedy(),
            [
                "nft insert rule inet theirs forward iifname knarr0 accept",
                "nft insert rule inet theirs forward oifname knarr0 accept"
            ]
        );
        for line in remedy() {
            run(&line);
        }
        passes();
        let rules = Ruleset::load().unwrap();
        assert_eq!(rules.forward(&packet(true, false), None), None);
        run("nft add rule inet theirs forward iifname eth9 accept");
        run("nft insert rule inet theirs forward ip6 saddr fd00::/8 reject");
        let rules = Ruleset::load().unwrap();
        let place = rules.forward(&packet(true, false), None).unwrap().place;
        assert!(
            place
                .to_string()
                .starts_with("table inet theirs, chain forward: rule ")
        );
        assert_eq!(rules.forward(&packet(true, true), None), None);
        assert_eq!(rules.forward(&packet(true, false), Some("theirs")), None);
    }
}
