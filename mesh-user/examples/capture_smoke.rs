//! Run by hand as root.
use mesh_user::capture::*;
use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::Duration,
};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (cgroup, dir, netns) = (PathBuf::from(&args[1]), PathBuf::from(&args[2]), PathBuf::from(&args[3]));
    if args.get(4).map(String::as_str) == Some("cleanup") {
        cleanup(&dir).unwrap();
        return;
    }
    let settings = CaptureSettings {
        cgroup,
        runtime_dir: dir,
        outbound_port: 15001,
        inbound_port: 15006,
        limits: CaptureLimits::default(),
        keep_on_exit: false,
        log_programs: false,
    };
    let t = std::time::Instant::now();
    let c = Capture::start(&settings).unwrap_or_else(|e| panic!("{e}: {e:#?}"));
    eprintln!("start {:?}", t.elapsed());
    let plan = CapturePlan {
        workloads: vec![PlannedWorkload {
            id: 7,
            name: "web".into(),
            selector: Selector::Netns(netns),
            addresses: vec!["10.77.1.2".parse().unwrap(), "fd77:1::2".parse().unwrap()],
            ports: vec![],
            exclude_inbound_ports: vec![9100],
            exclude_outbound_ports: vec![9999],
            capture_all: false,
        }],
        destinations: vec![
            ("10.96.0.10".parse().unwrap(), Some(5432)),
            ("fd96::10".parse().unwrap(), None),
            ("10.77.1.1".parse().unwrap(), Some(8080)),
        ],
    };
    let t = std::time::Instant::now();
    let applied = c.apply(&plan).unwrap_or_else(|e| panic!("{e}: {e:#?}"));
    eprintln!("apply {:?} failed {:?} enrolled {:?}", t.elapsed(), applied.failed, applied.enrolled);
    let mut removed = c.apply(&plan).unwrap();
    eprintln!("again: {} new, {:?} removed", removed.namespaces.len(), removed.removed.pop());
    for ns in applied.namespaces {
        for l in ns.listeners.outbound {
            let net = ns.net.clone();
            thread::spawn(move || {
                l.set_nonblocking(false).unwrap();
                loop {
                    let (mut s, peer) = l.accept().unwrap();
                    let o = net.original_dst(peer);
                    println!("outbound peer={peer} original={o:?} again={:?}", net.original_dst(peer));
                    s.set_nonblocking(false).unwrap();
                    if let Some(o) = o {
                        if o.destination.port() == 8080 {
                            let w = net.wire_socket(o.destination, o.source).unwrap();
                            w.set_nonblocking(false).unwrap();
                            let mut w: std::net::TcpStream = w.into();
                            thread::sleep(Duration::from_millis(50));
                            println!(
                                "wire local={:?} peer={:?} err={:?}",
                                w.local_addr(),
                                w.peer_addr(),
                                w.take_error()
                            );
                            let mut b = [0; 100];
                            let n = s.read(&mut b).unwrap();
                            w.write_all(&b[..n]).unwrap();
                            let n = w.read(&mut b).unwrap();
                            s.write_all(&b[..n]).unwrap();
                        } else {
                            let _ = s.write_all(b"hello\n");
                        }
                    }
                }
            });
        }
        for l in ns.listeners.inbound {
            let net = ns.net.clone();
            thread::spawn(move || {
                l.set_nonblocking(false).unwrap();
                loop {
                    let (mut s, peer) = l.accept().unwrap();
                    s.set_nonblocking(false).unwrap();
                    let local = s.local_addr().unwrap();
                    println!(
                        "inbound peer={peer} local={local} own={} owner={:?}",
                        net.is_own_listener(local),
                        net.inbound_workload(local.port())
                    );
                    let t = std::time::Instant::now();
                    match net.app_socket(local, SocketAddr::new(peer.ip(), peer.port())) {
                        Ok((a, guard)) => {
                            println!("app_socket {:?}", t.elapsed());
                            a.set_nonblocking(false).unwrap();
                            let mut a: std::net::TcpStream = a.into();
                            thread::sleep(Duration::from_millis(50));
                            let mut b = [0; 200];
                            match a.read(&mut b) {
                                Ok(n) => {
                                    let _ = s.write_all(&b[..n]);
                                }
                                Err(e) => println!("app leg {e}"),
                            }
                            drop(guard);
                        }
                        Err(e) => println!("app {e}"),
                    }
                }
            });
        }
    }
    println!("ready");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        match line.trim() {
            "stats" => {
                for (k, v) in c.stats().unwrap().iter() {
                    if v > 0 {
                        println!("{k}={v}");
                    }
                }
                println!("{:?}", c.map_use().unwrap());
                println!("statsend");
            }
            "quit" => break,
            _ => {}
        }
        line.clear();
    }
    c.shutdown().unwrap();
    eprintln!("down");
}
