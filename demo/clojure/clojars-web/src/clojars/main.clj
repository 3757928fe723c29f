(ns clojars.main
  "Starts the application: pages over HTTP, uploads through nailgun; and ends it so that no request is cut."
  (:require [clojars.log :refer [say]]
            [clojars.scp :as scp]
            [clojars.store :as store]
            [clojars.version :as version]
            [clojars.web :as web]
            [clojure.string :as str]
            [ring.adapter.jetty :refer [run-jetty]])
  (:import (com.martiansoftware.nailgun Alias AliasManager NGServer)
           (java.net InetAddress)
           (org.eclipse.jetty.server Server ServerConnector)
           (org.eclipse.jetty.server.handler StatisticsHandler))
  (:gen-class))

(def ^:private patience-ms
  "How long requests and uploads may take to end after SIGTERM. Less than the time after which SIGKILL comes."
  20000)

(def ^:private backlog 1024)

;; --- The command line

(def defaults
  {:host "127.0.0.1", :port "8001", :nailgun-port "8101", :repository "repository", :role "alone"})

(defn- port-number
  [text]
  (let [number (parse-long text)]
    (when-not (and number (<= 1 number 65535))
      (throw (ex-info (str "cannot start: " text " is not a port (1 to 65535)") {})))
    number))

(defn options
  "What `--name value` pairs say, with the defaults for the rest. Raises ex-info for what cannot be understood."
  [words]
  (let [pairs (for [[option value] (partition-all 2 words)]
                [(keyword (str/replace (str option) #"^--" "")) option value])]
    (doseq [[option text value] pairs]
      (when-not (and (str/starts-with? text "--") (contains? defaults option) value)
        (throw (ex-info (str "cannot start: what is " text "? (" (str/join ", " (map #(str "--" (name %)) (keys defaults)))
                             ", each with a value)")
                        {}))))
    (-> (into defaults (map (fn [[option _ value]] [option value]) pairs))
        (update :port port-number)
        (update :nailgun-port port-number))))

;; --- Uploads

(defn- nailgun
  "A nailgun server that knows one program: with it, nobody who reaches the port can run another one here."
  ^NGServer [{:keys [^String host nailgun-port]}]
  (let [server (NGServer. (InetAddress/getByName host) (int nailgun-port))
        aliases (.getAliasManager server)]
    (doseq [^Alias known (vec (.getAliases aliases))]
      (.removeAlias aliases (.getName known)))
    (.addAlias ^AliasManager aliases (Alias. "clojars.scp" "receives files by scp" (Class/forName "clojars.scp")))
    (.setAllowNailsByClassName server false)
    server))

(defn- leave!
  "End the process with this status. As long as nailgun runs it forbids that."
  [^NGServer server status]
  (.shutdown server false)
  (System/exit status))

(defn- run-nailgun!
  "Serve uploads in a thread of its own. Without them the application is of no use: it ends when they end, unless the
  promise that this returns has been kept."
  [^NGServer server {:keys [host nailgun-port]}]
  (let [stopping? (promise)
        serve (fn []
                (.run server)
                (when-not (realized? stopping?)
                  (say (str "cannot take uploads on " host ":" nailgun-port ": nailgun has ended"))
                  (leave! server 1)))
        thread (doto (Thread. ^Runnable serve "nailgun") .start)]
    ;; from then on `leave!` finds what it has to take back
    (while (and (.isAlive thread) (not (.isRunning server)))
      (Thread/sleep 1))
    stopping?))

;; --- Pages

(defn- graceful
  "Let Jetty end what it has begun to answer when it is stopped."
  [^Server server]
  (let [counting (StatisticsHandler.)]
    (.setHandler counting (.getHandler server))
    (.setHandler server counting)
    (.setStopTimeout server patience-ms)
    (doseq [^ServerConnector connector (.getConnectors server)]
      (.setAcceptQueueSize connector backlog))))

(defn- run-pages!
  ^Server [site {:keys [host port]}]
  (run-jetty (web/handler site)
             {:host host, :port port, :join? false, :send-server-version? false, :configurator graceful}))

;; --- Beginning and end

(defn- await-uploads
  "Return when no client is served any more, or it has taken too long."
  []
  (let [deadline (+ (System/nanoTime) (* 1000000 (long patience-ms)))]
    (while (and (pos? (scp/open-sessions)) (neg? (- (System/nanoTime) deadline)))
      (Thread/sleep 20))))

(defn- stop!
  "Take nothing new, and return when what had begun is done."
  [^NGServer uploads stopping? ^Server pages]
  (deliver stopping? true)
  (.shutdown uploads false)
  (.stop pages)
  (await-uploads))

(defn start!
  "Serve until the process is told to end."
  [{:keys [role repository host port nailgun-port] :as options}]
  (let [store (store/open repository)
        _ (scp/serve! store)
        uploads (nailgun options)
        stopping? (run-nailgun! uploads options)
        site {:store store
              :role role
              :version (version/version)
              :release (version/release)
              :takes-uploads? #(.isRunning uploads)}]
    (try
      (let [pages (run-pages! site options)]
        (.addShutdownHook (Runtime/getRuntime) (Thread. #(stop! uploads stopping? pages) "stop")))
      (catch Exception failed
        (say (str "cannot serve pages on " host ":" port ": " (ex-message failed)))
        (deliver stopping? true)
        (leave! uploads 1)))
    (say (str "clojars-web " (:version site) " serves " repository " as " role ": pages on " host ":" port
                  ", uploads on " host ":" nailgun-port))))

(defn -main
  [& words]
  (try
    (start! (options words))
    (catch clojure.lang.ExceptionInfo failed
      (say (ex-message failed))
      (System/exit 2))))
