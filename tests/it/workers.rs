//! The workers of one process: how many there are, and how sessions spread over them.

use std::net::SocketAddr;

use rustix::thread::{CpuSet, sched_getaffinity};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::harness::{
    Backend, Carrier, Place, Proxy, Setup, ask, binary, connect, eventually, listener, missing,
    on_both_carriers, pool, skip, soon,
};

on_both_carriers!(
    #[tokio::test]
    paced_sessions_are_counted_and_new_ones_even_them_out,
);

/// Sessions on either worker, as the metrics say.
async fn carried(proxy: &Proxy) -> [u64; 2] {
    let on = async |worker| proxy.metric("twinspan_worker_sessions", &[("worker", worker)]).await;
    [on("0").await, on("1").await]
}

/// Opens a session and tells which worker carries it.
async fn opens_on(proxy: &Proxy, bind: SocketAddr) -> (TcpStream, usize) {
    let before = carried(proxy).await;
    let mut client = connect(bind).await;
    client.write_all(b"!").await.unwrap();
    soon("an echo", client.read_exact(&mut [0])).await.unwrap();
    let after = carried(proxy).await;
    let worker = (0..2).find(|worker| after[*worker] > before[*worker]);
    (client, worker.unwrap_or_else(|| panic!("{before:?}, then {after:?}")))
}

async fn paced_sessions_are_counted_and_new_ones_even_them_out(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let paced = "session_bandwidth = \"10MiB\"";
    let (proxy, bind) = Proxy::before_on(carrier, &place, backend.address, paced).await;
    let (mut kept, mut closed) = (Vec::new(), Vec::new());
    while kept.len() < 16 {
        let (client, worker) = opens_on(&proxy, bind).await;
        if worker == 0 { kept.push(client) } else { closed.push(client) }
    }
    assert_eq!(carried(&proxy).await, [kept.len() as u64, closed.len() as u64]);
    drop(closed);
    eventually("the end of the others", async || (carried(&proxy).await == [16, 0]).then_some(())).await;
    for _ in 0..16 {
        kept.push(opens_on(&proxy, bind).await.0);
    }
    let [first, second] = carried(&proxy).await;
    assert_eq!(first + second, 32);
    // By the kernel's hash alone it would be 24 to 8.
    assert!(first.abs_diff(second) <= 5, "{first} and {second}");
    assert!(proxy.metric("twinspan_worker_sessions_passed_on_total", &[]).await > 0);
    let handed_over = proxy.metric("twinspan_worker_sessions_handed_over_total", &[]).await;
    assert_eq!(handed_over >= 32, carrier == Carrier::Engine, "{handed_over}");
    drop(kept);
    eventually("the end of all", async || (carried(&proxy).await == [0, 0]).then_some(())).await;
}

/// Whether another socket may bind there too, which SO_REUSEPORT allows where all have it.
fn shares_its_port(bind: SocketAddr) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&bind.into()).is_ok()
}

#[tokio::test]
async fn a_process_that_may_use_one_cpu_has_one_worker_with_a_socket_of_its_own() {
    if let Some(reason) = missing(&["taskset"]) {
        return skip("a_process_that_may_use_one_cpu_has_one_worker", &reason);
    }
    let place = Place::new();
    let backend = Backend::named(&place, "one").await;
    for one_cpu in [true, false] {
        let bind = place.free();
        let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
        let setup = Setup::new(&place, tables);
        let proxy = if one_cpu {
            let allowed = sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string()]).arg(binary());
            Proxy::launch_as(command, setup.workers(None))
        } else {
            Proxy::launch(setup.workers(Some(2)))
        };
        let proxy = proxy.ready().await;
        assert_eq!(ask(bind).await.unwrap(), "one");
        let (_, page) = proxy.get("/metrics").await.unwrap();
        let workers = page.lines().filter(|line| line.starts_with("twinspan_worker_sessions{")).count();
        assert_eq!(workers, if one_cpu { 1 } else { 2 });
        assert_eq!(shares_its_port(bind), !one_cpu);
    }
}
