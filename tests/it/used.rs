//! Sockets that are dialled again when their sessions are over: what it saves, and that no session finds anything of the
//! one before it.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    Backend, Calls, Carrier, Counted, Ending, Net, Pattern, Place, Proxy, command, connect, on_both_carriers,
    read_out, reset, soon,
};

/// Sessions that are over before the next one begins.
const SESSIONS: u64 = 500;

#[tokio::test]
async fn sessions_one_after_another_dial_with_the_same_socket() {
    let place = Place::new();
    let Some(calls) = calls_of_sessions("sessions_one_after_another_dial_with_the_same_socket", &place).await
    else {
        return;
    };
    assert!(calls.of("connect") >= SESSIONS, "{calls}");
    assert!(calls.of("socket") <= SESSIONS / 10, "{calls}");
}

/// Without them an endpoint may take a new connection for a late segment of an old one on the same port.
#[test]
fn without_timestamps_every_session_has_a_socket_of_its_own() {
    let test = "without_timestamps_every_session_has_a_socket_of_its_own";
    let Some(net) = Net::new(test) else { return };
    net.run(async || {
        command(&["sysctl", "-w", "net.ipv4.tcp_timestamps=0"]).unwrap();
        let Some(calls) = calls_of_sessions(test, &Place::new()).await else { return };
        assert!(calls.of("socket") >= SESSIONS, "{calls}");
    });
}

async fn calls_of_sessions(test: &str, place: &Place) -> Option<Counted> {
    let backend = Backend::echo(place).await;
    let (proxy, address) = Proxy::before(place, backend.address, "").await;
    let calls = Calls::start(test, proxy.pid()).await?;
    for number in 0..SESSIONS {
        visit(address, ClientEnds, number).await;
    }
    let counted = calls.finish().await;
    assert_eq!(backend.accepted(), SESSIONS);
    Some(counted)
}

on_both_carriers!(
    #[tokio::test(flavor = "multi_thread")]
    no_session_finds_anything_of_the_one_before_it_on_its_socket,
);

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    ClientEnds,
    /// The endpoint answers only after the client's end.
    AnswerComesLate,
    EndpointEnds,
    EndpointResets,
    ClientResets,
    /// More than a short session has.
    ClientEndsAfterMuch,
}

use Manner::{AnswerComesLate, ClientEnds, ClientEndsAfterMuch, ClientResets, EndpointEnds, EndpointResets};

/// Those after which a socket is used again come most often.
const MANNERS: [Manner; 12] = [
    ClientEnds,
    ClientEnds,
    AnswerComesLate,
    ClientEnds,
    EndpointEnds,
    ClientEnds,
    EndpointResets,
    AnswerComesLate,
    ClientEnds,
    ClientResets,
    ClientEnds,
    ClientEndsAfterMuch,
];

const MUCH: u64 = 300_000;

/// First a word that tells the manner and the session, which comes back.
async fn play(mut stream: TcpStream) -> (Manner, u64, Ending) {
    let mut word = [0; 16];
    stream.read_exact(&mut word).await.unwrap();
    let (manner, number) = parse(&word);
    if manner == AnswerComesLate {
        let ending = nothing_more(&mut stream).await;
        stream.write_all(&word).await.unwrap();
        return (manner, number, ending);
    }
    if manner == ClientEndsAfterMuch {
        assert_eq!(Pattern(number).receive(&mut stream, 0, MUCH).await.unwrap(), MUCH);
    }
    stream.write_all(&word).await.unwrap();
    match manner {
        EndpointEnds => stream.shutdown().await.unwrap(),
        EndpointResets => {
            stream.read_exact(&mut [0]).await.unwrap();
            reset(stream);
            return (manner, number, Ending::Reset);
        }
        ClientEnds | AnswerComesLate | ClientResets | ClientEndsAfterMuch => {}
    }
    (manner, number, nothing_more(&mut stream).await)
}

async fn visit(address: SocketAddr, manner: Manner, number: u64) {
    let mut client = connect(address).await;
    let word = word(manner, number);
    client.write_all(&word).await.unwrap();
    match manner {
        AnswerComesLate => client.shutdown().await.unwrap(),
        ClientEndsAfterMuch => Pattern(number).send(&mut client, 0, MUCH).await.unwrap(),
        ClientEnds | EndpointEnds | EndpointResets | ClientResets => {}
    }
    let mut back = [0; 16];
    soon("the word back", client.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, word, "{manner:?}, session {number}");
    match manner {
        EndpointResets => client.write_all(b"!").await.unwrap(),
        ClientResets => return reset(client),
        ClientEnds | ClientEndsAfterMuch => client.shutdown().await.unwrap(),
        AnswerComesLate | EndpointEnds => {}
    }
    let ending = if manner == EndpointResets { Ending::Reset } else { Ending::Clean };
    assert_eq!(read_out(&mut client).await, (Vec::new(), ending), "{manner:?}, session {number}");
}

async fn nothing_more(stream: &mut TcpStream) -> Ending {
    let (bytes, ending) = read_out(stream).await;
    assert_eq!(bytes, b"", "bytes of another session");
    ending
}

fn word(manner: Manner, number: u64) -> [u8; 16] {
    let mut word = [0; 16];
    let place = MANNERS.iter().position(|known| *known == manner).unwrap() as u64;
    word[..8].copy_from_slice(&place.to_be_bytes());
    word[8..].copy_from_slice(&number.to_be_bytes());
    word
}

fn parse(word: &[u8; 16]) -> (Manner, u64) {
    let part = |at: usize| u64::from_be_bytes(word[at..at + 8].try_into().unwrap());
    (MANNERS[usize::try_from(part(0)).unwrap()], part(8))
}

/// Some one after the other, and some at once, so that sockets change hands between all manners.
async fn no_session_finds_anything_of_the_one_before_it_on_its_socket(carrier: Carrier) {
    const VISITORS: u64 = 8;
    const EACH: u64 = 120;
    let place = Place::new();
    let mut backend = Backend::serve(&place, play).await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let visitors = (0..VISITORS).map(|visitor| {
        tokio::spawn(async move {
            for number in visitor * EACH..(visitor + 1) * EACH {
                let manner = MANNERS[usize::try_from(number * 7 % MANNERS.len() as u64).unwrap()];
                visit(address, manner, number).await;
            }
        })
    });
    let visitors: Vec<_> = visitors.collect();
    for visitor in visitors {
        visitor.await.unwrap();
    }
    let mut seen = vec![false; usize::try_from(VISITORS * EACH).unwrap()];
    for _ in 0..VISITORS * EACH {
        let (manner, number, ending) = backend.next().await;
        let reset = matches!(manner, EndpointResets | ClientResets);
        assert_eq!(ending == Ending::Reset, reset, "{manner:?}, session {number}");
        let twice = std::mem::replace(&mut seen[usize::try_from(number).unwrap()], true);
        assert!(!twice, "session {number} came twice");
    }
}
