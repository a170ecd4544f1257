//! `twinspan sessions`: the sessions of a running proxy, one by one, and the end of some of them.

use std::{
    fmt::Write as _,
    io::{self, Write},
    process::ExitCode,
};

use clap::Subcommand;
use hyper::Method;

use super::{
    admin::{self, AdminArgs, Failure},
    client::{Answer, Target},
    status::table::{Align, Cell, Table, bytes, duration, plain},
};
use crate::{
    api::{LiveSession, LiveSessions},
    ids::SessionHandle,
};

const PATH: &str = "/api/v1/sessions";

/// The arguments of `sessions`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SessionsArgs {
    /// What to do with them, if they are not only to be shown.
    #[command(subcommand)]
    pub verb: Option<SessionsVerb>,
    /// Which are shown.
    #[command(flatten)]
    pub list: ListArgs,
}

/// What can be done with sessions.
#[derive(Clone, Debug, Subcommand)]
pub enum SessionsVerb {
    /// Reset sessions on both sides; exit 1 if one of them had gone
    End(EndArgs),
}

/// The arguments of the list.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Which proxy.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Show the oldest NUMBER; 100 if nothing is said, 10000 at most.
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u32>,
    /// Only those of this pool.
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Only those with this endpoint: IP or IP:PORT.
    #[arg(long, value_name = "ADDR")]
    pub endpoint: Option<String>,
    /// Only those with an endpoint in this cloud.
    #[arg(long, value_name = "NAME")]
    pub cloud: Option<String>,
    /// Only those of this client: IP or IP:PORT.
    #[arg(long, value_name = "ADDR")]
    pub client: Option<String>,
    /// Only those accepted at least this long ago, such as 90s or 2h.
    #[arg(long, value_name = "TIME")]
    pub older_than: Option<String>,
    /// Print what the admin API said, for programs.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `sessions end`.
#[derive(Clone, Debug, clap::Args)]
pub struct EndArgs {
    /// Which proxy.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Handles, as `twinspan sessions` shows them.
    #[arg(required = true, value_name = "HANDLE")]
    pub handles: Vec<SessionHandle>,
}

/// Shows sessions, or ends some.
#[must_use]
pub fn run(args: &SessionsArgs) -> ExitCode {
    let (mut out, mut talk) = (io::stdout().lock(), io::stderr().lock());
    let outcome = admin::wait(async {
        match &args.verb {
            None => show(&args.list.admin.target()?, &args.list, &mut out, &mut talk).await,
            Some(SessionsVerb::End(end_args)) => {
                end(&end_args.admin.target()?, &end_args.handles, &mut out).await
            }
        }
    });
    drop(talk);
    admin::exit(outcome)
}

async fn show(
    target: &Target,
    args: &ListArgs,
    out: &mut impl Write,
    talk: &mut impl Write,
) -> Result<(), Failure> {
    let answer = admin::ask(target, Method::GET, &path(args)).await?;
    let listed: LiveSessions = admin::read(target, &answer)?;
    let text = if args.json { json(target, &answer)? } else { table(&listed) };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)?;
    // With nobody to read the rest, the list has to do.
    for worker in &listed.silent_workers {
        drop(writeln!(talk, "warning: worker {worker} did not answer: what it carries is missing"));
    }
    if listed.total == 0 {
        admin::warn_of_unknown((args.pool.as_deref(), args.cloud.as_deref()), target, talk).await;
    }
    let shown = listed.sessions.len() as u64;
    if !args.json && shown < listed.total {
        drop(writeln!(talk, "the oldest {shown} of {}; --limit shows more", listed.total));
    }
    Ok(())
}

/// From the answer and not from what was read, so that nothing a newer proxy says is lost.
fn json(target: &Target, answer: &Answer) -> Result<String, Failure> {
    let value: serde_json::Value = admin::read(target, answer)?;
    Ok(format!("{value:#}\n"))
}

async fn end(target: &Target, handles: &[SessionHandle], out: &mut impl Write) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for handle in handles {
        match admin::ask(target, Method::DELETE, &format!("{PATH}/{handle}")).await {
            Ok(answer) => {
                let ended: LiveSession = admin::read(target, &answer)?;
                out.write_all(line(&ended).as_bytes()).map_err(Failure::Output)?;
            }
            Err(Failure::Refused { complaint, .. }) => failed.push(plain(&format!("{handle}: {complaint}"))),
            Err(failure) => return Err(failure),
        }
    }
    out.flush().map_err(Failure::Output)?;
    if failed.is_empty() { Ok(()) } else { Err(Failure::Partly(failed)) }
}

fn path(args: &ListArgs) -> String {
    let filters = [
        ("limit", args.limit.map(|limit| limit.to_string())),
        ("pool", args.pool.clone()),
        ("endpoint", args.endpoint.clone()),
        ("cloud", args.cloud.clone()),
        ("client", args.client.clone()),
        ("older_than", args.older_than.clone()),
    ];
    let mut path = String::from(PATH);
    let mut mark = '?';
    for (key, value) in filters {
        let Some(value) = value else { continue };
        path.extend([mark.to_string(), format!("{key}=")]);
        value.bytes().for_each(|byte| encode(&mut path, byte));
        mark = '&';
    }
    path
}

/// Writes a byte of a query's value.
fn encode(path: &mut String, byte: u8) {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        path.push(char::from(byte));
    } else {
        // Writing to a String cannot fail.
        let _ = write!(path, "%{byte:02X}");
    }
}

fn table(listed: &LiveSessions) -> String {
    let columns = [
        ("HANDLE", Align::Left),
        ("SESSION", Align::Right),
        ("CLIENT", Align::Left),
        ("LISTENER", Align::Left),
        ("POOL", Align::Left),
        ("CLOUD", Align::Left),
        ("ENDPOINT", Align::Left),
        ("STAGE", Align::Left),
        ("AGE", Align::Right),
        ("TO UPSTREAM", Align::Right),
        ("TO CLIENT", Align::Right),
        ("ATTEMPTS", Align::Right),
    ];
    let mut table = Table::new(columns);
    for session in &listed.sessions {
        let known = |word: &Option<String>| Cell::new(word.as_deref().unwrap_or_default());
        let cells = vec![
            Cell::new(&session.handle),
            Cell::new(session.session.to_string()),
            Cell::new(&session.client),
            Cell::new(&session.listener),
            known(&session.pool),
            known(&session.cloud),
            known(&session.endpoint),
            Cell::new(&session.stage),
            Cell::new(duration(session.age_seconds)),
            Cell::new(bytes(session.to_upstream as f64)),
            Cell::new(bytes(session.to_client as f64)),
            Cell::new(session.attempts.to_string()),
        ];
        table.row(cells, Vec::new());
    }
    let mut out = String::new();
    table.write(&mut out, "", false);
    if listed.sessions.is_empty() && listed.total == 0 {
        out.push_str("no sessions\n");
    }
    out
}

/// What was ended, in the words of the session log.
fn line(ended: &LiveSession) -> String {
    let unknown = || "-".to_owned();
    let text = format!(
        "ended {} session={} client={} pool={} cloud={} endpoint={} stage={}",
        ended.handle,
        ended.session,
        ended.client,
        ended.pool.clone().unwrap_or_else(unknown),
        ended.cloud.clone().unwrap_or_else(unknown),
        ended.endpoint.clone().unwrap_or_else(unknown),
        ended.stage,
    );
    plain(&text) + "\n"
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::client::tests::{nobody, server},
        *,
    };

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sessions: SessionsArgs,
    }

    fn args(arguments: &[&str]) -> ListArgs {
        Line::parse_from([&["sessions"], arguments].concat()).sessions.list
    }

    fn sample() -> LiveSession {
        LiveSession {
            handle: "0-17-3".into(),
            session: 7,
            client: "192.0.2.1:40000".into(),
            listener: "pg".into(),
            pool: Some("pg".into()),
            endpoint: Some("10.0.1.10:5432".into()),
            cloud: Some("aws".into()),
            generation: 12,
            stage: "relay".into(),
            age_seconds: 192.0,
            to_upstream: 10,
            to_client: 2048,
            attempts: 1,
        }
    }

    fn answer(body: &impl serde::Serialize) -> String {
        let body = serde_json::to_string(body).unwrap();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_table_says_what_it_leaves_out() {
        let said = LiveSessions { sessions: vec![sample()], total: 9, silent_workers: vec![1] };
        let (target, asked) = server(answer(&said)).await;
        let (mut out, mut talk) = (Vec::new(), Vec::new());
        let list = args(&["--limit=1", "--pool=p g", "--client=[::1]:5", "--older-than", "2m"]);
        show(&target, &list, &mut out, &mut talk).await.unwrap();
        assert!(asked.await.unwrap().starts_with(
            "GET /api/v1/sessions?limit=1&pool=p%20g&client=%5B%3A%3A1%5D%3A5&older_than=2m HTTP/1.1\r\n"
        ));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HANDLE  SESSION  CLIENT           LISTENER  POOL  CLOUD  ENDPOINT        STAGE    AGE  TO UPSTREAM  TO CLIENT  ATTEMPTS\n\
             0-17-3        7  192.0.2.1:40000  pg        pg    aws    10.0.1.10:5432  relay  3m12s         10 B    2.0 KiB         1\n"
        );
        assert_eq!(
            String::from_utf8(talk).unwrap(),
            "warning: worker 1 did not answer: what it carries is missing\nthe oldest 1 of 9; --limit shows more\n"
        );
    }

    #[tokio::test]
    async fn json_is_what_the_proxy_said() {
        let said = LiveSessions { sessions: vec![sample()], total: 1, silent_workers: Vec::new() };
        let mut said = serde_json::to_value(&said).unwrap();
        said["from_the_future"] = true.into();
        let (target, _asked) = server(answer(&said)).await;
        let mut out = Vec::new();
        show(&target, &args(&["--json"]), &mut out, &mut Vec::new()).await.unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), said);
    }

    #[tokio::test]
    async fn who_was_ended_is_told_and_who_had_gone_is_an_error() {
        let handles = ["0-17-3".parse().unwrap()];
        let (target, asked) = server(answer(&sample())).await;
        let mut out = Vec::new();
        end(&target, &handles, &mut out).await.unwrap();
        assert!(asked.await.unwrap().starts_with("DELETE /api/v1/sessions/0-17-3 HTTP/1.1\r\n"));
        let told = String::from_utf8(out).unwrap();
        assert!(
            told.starts_with("ended 0-17-3 session=7 client=192.0.2.1:40000 pool=pg cloud=aws "),
            "{told}"
        );

        let (target, _asked) =
            server("HTTP/1.1 404 no\r\nContent-Length: 16\r\n\r\n{\"error\":\"gone\"}").await;
        let failure = end(&target, &handles, &mut Vec::new()).await.unwrap_err();
        assert_eq!((failure.code(), failure.report().as_str()), (ExitCode::FAILURE, "error: 0-17-3: gone"));
        let (target, _socket) = nobody();
        let failure = end(&target, &handles, &mut Vec::new()).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::from(69));
    }

    #[test]
    fn ending_takes_handles_and_nothing_else() {
        let parse = |arguments: &[&str]| Line::try_parse_from([&["sessions"], arguments].concat());
        let parsed = parse(&["end", "--admin=a:1", "0-1-1", "s1-2-3"]).unwrap();
        let Some(SessionsVerb::End(end)) = parsed.sessions.verb else { panic!("no verb") };
        assert_eq!((end.handles.len(), end.admin.admin.unwrap().to_string().as_str()), (2, "a:1"));
        for wrong in [["end"].as_slice(), &["end", "7"], &["--json", "end", "0-1-1"], &["0-1-1"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
