//! Two services in one process: `pong` answers, `ping` asks and then works through a queue; the run ends when it is done.

use std::time::Duration;

use folgore_actors::{
    BoxFuture, ChildPolicy, Context, LocalConfig, RestartPolicy, Service, ServiceError, Supervisor, local,
};
use folgore_protocol::Search;

const PATIENCE: Duration = Duration::from_secs(5);

struct Pong;

impl Service for Pong {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let answer = |mut ball: Search| async move {
                ball.top_k += 1;
                Ok::<_, String>(ball)
            };
            let _served = context.links.serve_typed("pong", 1, answer).await?;
            context.shutdown.stopping().await;
            Ok(())
        })
    }
}

struct Ping;

impl Service for Ping {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let links = &context.links;
            let mut ball = Search { query: "ping".into(), top_k: 0 };
            while ball.top_k < 3 {
                ball = links.call_when_served("pong", &ball, &format!("ball {}", ball.top_k), PATIENCE).await?;
                println!("asked and answered: {} {}", ball.query, ball.top_k);
                links.publish_job("balls", &ball, &format!("ball {}", ball.top_k)).await?;
                context.status.set_field("returned", ball.top_k);
            }
            for job in links.pull_jobs::<Search>("balls", 3, PATIENCE).await?.jobs {
                println!("pulled: {} (attempt {})", job.envelope.key, job.attempt);
                job.ack().await?;
            }
            Ok(())
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), ServiceError> {
    let links = local("ping", LocalConfig::new(std::env::temp_dir().join("folgore-ping")));
    let supervisor = Supervisor::start(links, RestartPolicy::default()).await?;
    folgore_actors::on_ctrl_c(supervisor.token(), |level| eprintln!("{level:?}"))?;
    supervisor.spawn("pong", || Box::new(Pong)).await?;
    supervisor.spawn_as("ping", ChildPolicy::RunEnds, || Box::new(Ping)).await?;
    supervisor.wait().await?;
    println!("both services have ended");
    Ok(())
}
