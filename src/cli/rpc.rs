//! The servers of `--rpc`: whether they are there is asked before llama.cpp, which would
//! abort, asks them anything.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::words::Words;
use crate::error::{Error, Result};
use crate::llama::OptionInfo;

const RPC: &str = "--rpc";
/// A server that takes longer to accept a connection is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// The servers that the environment and the command line name, each once.
pub fn servers(words: &Words, options: &[OptionInfo]) -> Vec<String> {
    let option = options.iter().find(|option| option.name() == RPC);
    let variable = option.and_then(|option| std::env::var(option.env.as_deref()?).ok());
    let lists = variable.into_iter().chain(words.values_of(RPC, options));
    let mut servers: Vec<String> = Vec::new();
    for list in lists {
        for server in list.split(',') {
            if !servers.iter().any(|known| known == server) {
                servers.push(server.to_owned());
            }
        }
    }
    servers
}

/// Asks each server for a connection, and gives it back.
///
/// # Errors
/// `Usage` for what is no address, `Failed` when nobody is there.
pub fn check(servers: &[String]) -> Result<()> {
    let addresses: Vec<_> = servers
        .iter()
        .map(|server| address(server))
        .collect::<Result<_>>()?;
    for ((host, port), server) in addresses.into_iter().zip(servers) {
        reach(host, port).map_err(|error| {
            Error::Failed(format!(
                "no RPC server answers at '{server}' ({error}); start rpc-server there, or \
                 correct --rpc"
            ))
        })?;
    }
    Ok(())
}

/// Host and port, as llama.cpp takes them apart.
fn address(server: &str) -> Result<(&str, u16)> {
    let parts = server.split_once(':').filter(|(host, _)| !host.is_empty());
    let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parts.filter(|(_, port)| *port > 0).ok_or_else(|| {
        Error::Usage(format!(
            "'{server}' is no RPC server; give HOST:PORT to --rpc, several with commas between"
        ))
    })
}

fn reach(host: &str, port: u16) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_a_usage_error() {
        for server in [
            "",
            "host",
            ":50052",
            "host:",
            "host:x",
            "host:0",
            "host:70000",
        ] {
            let error = address(server).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(
                error.to_string().contains(&format!("'{server}'")),
                "{error}"
            );
        }
        assert_eq!(address("host:50052").unwrap(), ("host", 50052));
    }

    #[test]
    fn an_open_port_is_reached_and_a_closed_one_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        check(std::slice::from_ref(&server)).unwrap();
        drop(listener);
        let error = check(&[server]).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
    }
}
