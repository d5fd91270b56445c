//! Which token service may see a registry's credentials.

/// Whether `realm` (a host) belongs to `registry` (a host), so that its credentials may go there:
/// the same host, or hosts of one organization's domain (`registry-1.docker.io` and
/// `auth.docker.io`, `registry.gitlab.com` and `gitlab.com`).
///
/// There is no list of public suffixes here. A domain of one label (`io`) never counts, nor one of
/// two labels that looks like a country's registry (`co.uk`); under shared hosting domains only
/// the same host counts.
pub(crate) fn belongs(registry: &str, realm: &str) -> bool {
    if registry == realm {
        return true;
    }
    // Addresses have no domain.
    if registry.parse::<std::net::IpAddr>().is_ok() || realm.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    let parent = registry.split_once('.').map_or("", |(_, parent)| parent);
    let below = |domain: &str| {
        is_organization(domain) && (realm == domain || realm.ends_with(&format!(".{domain}")))
    };
    below(registry) || below(parent)
}

fn is_organization(domain: &str) -> bool {
    let labels: Vec<&str> = domain.split('.').collect();
    let shared = [
        "amazonaws.com",
        "azurecr.io",
        "azurewebsites.net",
        "cloudapp.net",
        "cloudfront.net",
        "fly.dev",
        "github.io",
        "gitlab.io",
        "googleapis.com",
        "herokuapp.com",
        "pkg.dev",
        "run.app",
        "vercel.app",
        "workers.dev",
    ];
    match labels.as_slice() {
        [] | [_] => false,
        [second, top] if top.len() == 2 && second.len() <= 3 => {
            // `co.uk`, `com.au`, `ne.jp`; real two-label names this short are not worth the risk.
            !matches!(
                *second,
                "ac" | "co" | "com" | "edu" | "gov" | "go" | "ne" | "net" | "nom" | "or" | "org"
            )
        }
        _ => !shared
            .iter()
            .any(|suffix| domain == *suffix || domain.ends_with(&format!(".{suffix}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::belongs;

    #[test]
    fn credentials_stay_within_the_organization() {
        for (registry, realm) in [
            ("registry-1.docker.io", "auth.docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("registry.gitlab.com", "gitlab.com"),
            ("registry.example.com", "login.example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("quay.io", "auth.quay.io"),
        ] {
            assert!(belongs(registry, realm), "{registry} {realm}");
        }
        for (registry, realm) in [
            ("registry-1.docker.io", "auth.docker.io.evil.com"),
            ("ghcr.io", "evil.io"),
            ("shop.co.uk", "evil.co.uk"),
            ("a.azurecr.io", "b.azurecr.io"),
            (
                "1.dkr.ecr.us-east-1.amazonaws.com",
                "2.dkr.ecr.us-east-1.amazonaws.com",
            ),
            ("127.0.0.1", "127.0.0.2"),
            ("10.0.0.1", "11.0.0.1"),
            ("localhost", "evil"),
            ("reg.example.com", "exxample.com"),
        ] {
            assert!(!belongs(registry, realm), "{registry} {realm}");
        }
    }
}
