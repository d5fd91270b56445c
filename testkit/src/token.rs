//! A token service for Debian's `docker-registry`: gives signed JWTs as distribution's "Token
//! Authentication Specification" and "OAuth2 Token Authentication" say.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// The one who may log in, and everything below `team/`.
pub const USER: &str = "me";
/// Whose password it is.
pub const PASSWORD: &str = "secret";
/// What a login gets to keep instead of the password.
pub const IDENTITY: &str = "identity-of-me";
/// Who signs, as the registry must be told.
pub const ISSUER: &str = "knarr-testkit";

/// How tokens are signed (RFC 7518, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA with SHA-256.
    Rs256,
    /// The curve P-256 with SHA-256.
    Es256,
}

enum Key {
    Rsa(RsaKeyPair),
    Curve(EcdsaKeyPair),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// `GET` or `POST`.
    pub method: String,
    /// The path and the query.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The form of a POST.
    pub body: String,
}

impl TokenRequest {
    /// The scopes that are asked for.
    pub fn scopes(&self) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut scopes = Vec::new();
        for (name, value) in fields(query).into_iter().chain(fields(&self.body)) {
            if name == "scope" {
                scopes.extend(value.split(' ').map(str::to_owned));
            }
        }
        scopes
    }
}

/// What tokens say from now on.
struct Said {
    audience: String,
    /// Seconds from now; may lie in the past.
    ends: i64,
}

struct Shared {
    key: Key,
    /// The signer's certificate as a JWT's header has it.
    chain: String,
    said: Mutex<Said>,
    seen: Mutex<Vec<TokenRequest>>,
    stop: AtomicBool,
}

/// The running service; ends when dropped.
pub struct Tokens {
    port: u16,
    certificate: PathBuf,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("port", &self.port).finish()
    }
}

impl Tokens {
    /// Makes a key and its certificate in `dir` and serves on a free loopback port. Tokens are for
    /// the service `registry.test` and good for five minutes, until told otherwise.
    ///
    /// # Errors
    /// When Debian's package openssl is missing.
    pub fn start(dir: &Path, algorithm: Algorithm) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
        let kind: &[&str] = match algorithm {
            Algorithm::Rs256 => &["-newkey", "rsa:2048"],
            Algorithm::Es256 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        };
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "30",
                "-subj",
                "/CN=tokens",
            ])
            .args(kind)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("openssl is missing: install Debian's package openssl")?;
        let told = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "openssl req: {told}");
        let der = unarmored(&std::fs::read_to_string(&key)?)?;
        let rejected = |error| anyhow::anyhow!("the key is not taken: {error}");
        let shared = Arc::new(Shared {
            key: match algorithm {
                Algorithm::Rs256 => Key::Rsa(RsaKeyPair::from_pkcs8(&der).map_err(rejected)?),
                Algorithm::Es256 => Key::Curve(
                    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                        .map_err(rejected)?,
                ),
            },
            chain: STANDARD.encode(unarmored(&std::fs::read_to_string(&certificate)?)?),
            said: Mutex::new(Said {
                audience: "registry.test".to_owned(),
                ends: 300,
            }),
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let tokens = Self {
            port: listener.local_addr()?.port(),
            certificate,
            shared,
        };
        let shared = Arc::clone(&tokens.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that hangs up is its own business.
                shared.serve(stream).ok();
            }
        });
        Ok(tokens)
    }

    /// The URL of the service, seen at `host`.
    pub fn realm(&self, host: &str) -> String {
        format!("http://{host}:{}/token", self.port)
    }

    /// What the registry must believe.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Tokens from now on are for another service.
    pub fn audience(&self, audience: &str) {
        audience.clone_into(&mut lock(&self.shared.said).audience);
    }

    /// Tokens from now on end in so many seconds. A registry forgives 60 s.
    pub fn ends_in(&self, seconds: i64) {
        lock(&self.shared.said).ends = seconds;
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<TokenRequest> {
        lock(&self.shared.seen).clone()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = (words.next(), words.next());
        let mut request = TokenRequest {
            method: method.unwrap_or_default(),
            target: target.unwrap_or_default(),
            authorization: None,
            body: String::new(),
        };
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => request.authorization = Some(value.to_owned()),
                "content-length" => length = value.parse()?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        request.body = String::from_utf8(body)?;
        lock(&self.seen).push(request.clone());
        let (status, answer) = self.answer(&request)?;
        let answer = answer.to_string();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
        Ok(())
    }

    fn answer(&self, request: &TokenRequest) -> Result<(u16, Value)> {
        let form = fields(&request.body);
        let refresh = form.iter().find(|(name, _)| name == "refresh_token");
        let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        let user = match (&request.authorization, refresh) {
            (Some(given), _) if *given == basic => Some(USER),
            (_, Some((_, given))) if given == IDENTITY => Some(USER),
            (None, None) => None,
            _ => return Ok((401, json!({"errors": [{"code": "UNAUTHORIZED"}]}))),
        };
        let token = self.sign(user, &request.scopes())?;
        let mut answer = json!({"token": token, "access_token": token, "expires_in": 300});
        if request.target.contains("offline_token=true") && user.is_some() {
            answer["refresh_token"] = json!(IDENTITY);
        }
        Ok((200, answer))
    }

    /// A JWT (RFC 7519) for what of the scopes the user may do.
    fn sign(&self, user: Option<&str>, scopes: &[String]) -> Result<String> {
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let may = |action: &&str| match user {
                    Some(_) => name.starts_with("team/"),
                    None => name.starts_with("public/") && *action == "pull",
                };
                let actions: Vec<&str> = actions.split(',').filter(may).collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let said = lock(&self.said);
        let claims = json!({
            "iss": ISSUER,
            "sub": user.unwrap_or_default(),
            "aud": said.audience,
            "exp": now + said.ends,
            "nbf": now - 600,
            "iat": now,
            "jti": now.to_string(),
            "access": access,
        });
        let algorithm = match &self.key {
            Key::Rsa(_) => "RS256",
            Key::Curve(_) => "ES256",
        };
        let header = json!({"typ": "JWT", "alg": algorithm, "x5c": [self.chain]});
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let random = SystemRandom::new();
        let failed = |_| anyhow::anyhow!("cannot sign");
        let signature = match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature)
                    .map_err(failed)?;
                signature
            }
            Key::Curve(key) => {
                let signature = key.sign(&random, text.as_bytes()).map_err(failed)?;
                signature.as_ref().to_vec()
            }
        };
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a PEM file with one object.
fn unarmored(pem: &str) -> Result<Vec<u8>> {
    let lines = pem.lines().filter(|line| !line.starts_with("-----"));
    Ok(STANDARD.decode(lines.collect::<String>())?)
}

/// The fields of a query or form, percent-decoded.
fn fields(text: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
                (b'%', Some(byte)) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                _ => {
                    bytes.push(if *first == b'+' { b' ' } else { *first });
                    rest = after;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}
