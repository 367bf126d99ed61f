//! Programs run in a clean environment, are watched, and do not outlive the test.

use std::{path::Path, time::Duration};

use anyhow::Result;
use cloud_image_uploader_test_support::{process::listens, program::Program, proxy::Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Result<Program> {
    Ok(Program::new("/bin/sh")?.args(["-c", script]))
}

#[tokio::test]
async fn environment_is_clean() -> Result<()> {
    let exit = shell("env; echo to stderr >&2; exit 3")?
        .env("ADDED", "1")
        .run(SOON)
        .await?;
    assert_eq!(exit.code, Some(3));
    assert_eq!(exit.stderr, "to stderr\n");
    let mut names: Vec<_> = exit
        .stdout
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    // The shell's own.
    names.retain(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"));
    names.sort_unstable();
    assert_eq!(names, ["ADDED", "HOME", "LANG", "PATH"]);
    Ok(())
}

#[tokio::test]
async fn logs_signals_and_memory() -> Result<()> {
    let script = "trap 'echo stopping >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.05; done";
    let mut running = shell(script)?.start()?;
    running.wait_for_log("ready", SOON).await?;
    assert!(running.peak_memory() > 100_000);
    assert!(running.wait_for_log("never", Duration::from_millis(100)).await.is_err());
    running.terminate()?;
    let exit = running.wait(SOON).await?;
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(7), "ready\nstopping\n"));
    assert!(exit.peak_memory > 100_000);

    let mut ended = shell("echo reason >&2")?.start()?;
    let error = ended.wait_for_log("ready", SOON).await.unwrap_err().to_string();
    assert!(error.contains("reason"), "{error}");
    Ok(())
}

#[tokio::test]
async fn dropped_program_is_gone() -> Result<()> {
    let running = shell("exec sleep 600")?.start()?;
    let process = format!("/proc/{}", running.id());
    assert!(Path::new(&process).exists());
    drop(running);
    assert!(!Path::new(&process).exists());
    let error = shell("exec sleep 600")?
        .run(Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("still running"), "{error}");
    Ok(())
}

#[tokio::test]
async fn proxy_cuts_and_lets_through_again() -> Result<()> {
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(echo.local_addr()?.port()).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    let talk = async || -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"hello");
        Ok(stream)
    };
    let mut open = talk().await?;
    proxy.cut();
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let mut open = talk().await?;
    proxy.close();
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(talk().await.is_err());
    proxy.open();
    talk().await?;
    assert!(listens(proxy.port()).await);
    Ok(())
}
